"""The command line of `make fuzz`."""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
from pathlib import Path

from common import run_here, tiny
from rich.console import Console
from rich.table import Table

from fuzz.cases import Outcome
from fuzz.child import Child
from fuzz.driver import INPUT, Tally, fuzz
from fuzz.kinds import KINDS

OUTCOMES: tuple[Outcome, ...] = ("quarantined", "told", "right")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1_200, help="how many inputs are made")
    parser.add_argument("--seed", type=int, default=0, help="of what is made at random")
    parser.add_argument("--only", choices=sorted(KINDS), help="one kind of input")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--again", type=Path, metavar="FOLDER", help="try a kept input again")
    parser.add_argument("--run", type=Path, help="a finished run, runs/NAME; by default, make one")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory(prefix="ppt-fuzz-") as temporary:
        run = given.run.absolute() if given.run else _finished_run(Path(temporary), console)
        if given.again:
            return _again(given.again.absolute(), run, Path(temporary, "input"), console)
        kinds = [given.only] if given.only else list(KINDS)
        folders = Path(temporary, "inputs"), given.failures.absolute()
        console.print(f"{given.count:,} inputs, seed {given.seed}")
        tallies = {}
        for kind, tally in fuzz(given.count, given.seed, kinds, run, *folders):
            tallies[kind] = tally
            tried, failed = tally.outcomes.total(), len(tally.failures)
            console.print(f"{kind}: {tried} tried, {failed} failed", highlight=False)
        _print(tallies, given.seed, console)
    return 1 if any(tally.failures for tally in tallies.values()) else 0


def _finished_run(folder: Path, console: Console) -> Path:
    """Run a tiny curriculum, whose checkpoint and store some kinds of input need."""
    console.print("making a tiny run, whose checkpoint and store are used ...")
    record = run_here(tiny(folder, folder / "runs"))
    return Path(record.folder)


def _again(folder: Path, run: Path, work: Path, console: Console) -> int:
    """Try an input that was kept, and print all that is told about it."""
    pickle.loads((folder / INPUT).read_bytes()).write(work)
    child = Child(run)
    tried = child.try_one(folder.name.rpartition("-")[0], work)
    child.close()
    console.print(f"{tried.outcome} {tried.told}", markup=False, highlight=False)
    return 1 if tried.outcome == "failed" else 0


def _print(tallies: dict[str, Tally], seed: int, console: Console) -> None:
    table = Table("kind", title=f"seed {seed}", title_justify="left")
    for column in ("tried", *OUTCOMES, "failed"):
        table.add_column(column, justify="right")
    rows = {kind: tally.numbers(OUTCOMES) for kind, tally in tallies.items()}
    for kind, numbers in rows.items():
        table.add_row(kind, *map(str, numbers), end_section=kind == [*rows][-1])
    table.add_row("all", *(str(sum(column)) for column in zip(*rows.values(), strict=True)))
    console.print(table)
    for tally in tallies.values():
        for folder, told in tally.failures:
            *_, last = told.strip().splitlines() or [""]
            console.print(f"failed: {folder}: {last[:300]}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())

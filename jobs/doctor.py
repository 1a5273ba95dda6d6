"""Check what is there and what is missing for a curriculum, before hours of work.

ppt doctor paper/refcoco
"""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ppt.config import ConfigError, load_curriculum
from ppt.config.named import CURRICULA

from .common import Overrides, command, find, out, run_alone

if TYPE_CHECKING:
    from ppt.doctor import Check

_COLOURS = {"ok": "green", "warning": "yellow", "missing": "bold red", "wrong": "bold red"}


@command
def main(
    curriculum: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CURRICULUM]",
            help="A YAML file or a name, e.g. quickstart. Without it, the machine is checked.",
        ),
    ] = None,
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="Check for `ppt train --local`, which needs no Ray.")
    ] = False,
) -> None:
    """Say what is there and what is missing; exit code 1 means that the curriculum cannot run."""
    console = out()
    loaded = load_curriculum(find(curriculum), overrides or []) if curriculum else None
    from ppt.doctor import examine, examine_machine

    if loaded is None:
        _print_checks(examine_machine(local=local), console)
        _print_curricula(console)
        return
    checks = examine(loaded, local=local)
    _print_checks(checks, console)
    stopping = [check.name for check in checks if check.stops]
    if stopping:
        console.print(f"[bold red]{escape(str(curriculum))} cannot run:[/] {', '.join(stopping)}")
        raise typer.Exit(1)
    warnings = sum(check.state == "warning" for check in checks)
    told = f", {warnings} warning{'s' * (warnings > 1)}" if warnings else ""
    console.print(f"[bold green]{escape(str(curriculum))} can run[/]{told}")


def _print_checks(checks: list[Check], console: Console) -> None:
    """Print the checks as a table. Repeated advice is replaced by a reference to the first one."""
    table = Table("check", "state", "what is there, what to do", pad_edge=False)
    table.columns[2].overflow = "fold"
    told: dict[str, str] = {}
    for check in checks:
        colour = _COLOURS[check.state]
        text = escape(check.found)
        if check.todo:
            first = told.setdefault(check.todo, check.name)
            todo = check.todo if first == check.name else f"as for {first}"
            text += f"\n[{colour}]->[/] {escape(todo)}"
        table.add_row(check.name, f"[{colour}]{check.state}[/]", text, end_section=True)
    console.print(table)


def _print_curricula(console: Console) -> None:
    """Print the curricula that come with ppt, with a description of each."""
    table = Table("curriculum", "what it is", title_justify="left", pad_edge=False)
    names = {p: str(p.relative_to(CURRICULA)).removesuffix(".yaml") for p in _in(CURRICULA)}
    here = Path("curricula")
    if here.is_dir() and not here.samefile(CURRICULA):
        names |= {path: str(path) for path in _in(here) if not _is_copy(path, here)}
    for path, name in names.items():
        table.add_row(escape(name), escape(_describe(path)))
    console.print(table)
    console.print(f"ppt doctor CURRICULUM says what one of them needs; they lie in {CURRICULA}")


def _in(folder: Path) -> list[Path]:
    """Return the curricula in a folder."""
    return sorted(path for path in folder.rglob("*.yaml") if path.parent.name != "sweeps")


def _is_copy(path: Path, folder: Path) -> bool:
    """Return whether a file is that of the same name in `CURRICULA`, as in a clone."""
    try:
        return filecmp.cmp(path, CURRICULA / path.relative_to(folder), shallow=False)
    except OSError:  # one of them is not there, or cannot be read
        return False


def _describe(path: Path) -> str:
    """Return the first line of a curriculum's file, and what is wrong with it or must be set."""
    try:
        first = path.read_text().partition("\n")[0].lstrip("# ")
        load_curriculum(path)
    except ConfigError as error:
        return f"{first} ({'; '.join(str(error).splitlines()[:1])})"
    except (OSError, UnicodeDecodeError) as error:
        return f"cannot be read: {error}"
    return first


if __name__ == "__main__":
    run_alone(main)

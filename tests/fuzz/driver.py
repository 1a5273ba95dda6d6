"""Makes the inputs of every kind, has each tried, and keeps those that fail."""

from __future__ import annotations

import pickle
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fuzz.cases import Input, Outcome
from fuzz.child import Child, Tried
from fuzz.kinds import KINDS

INPUT = "input.pickle"
"""In the folder of an input that failed: the input, from which it can be written again."""


@dataclass
class Tally:
    """What came of the inputs of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Path, str]] = field(default_factory=list)  # kept folder, reason

    def numbers(self, outcomes: Sequence[Outcome]) -> list[int]:
        """How many inputs were tried, how many had each outcome, and how many failed."""
        return [
            self.outcomes.total(),
            *(self.outcomes[outcome] for outcome in outcomes),
            len(self.failures),
        ]


def fuzz(
    count: int, seed: int, kinds: Sequence[str], run: Path, work: Path, kept: Path
) -> Iterator[tuple[str, Tally]]:
    """Try at least `count` inputs, shared among the kinds, and yield what came of each kind.

    Args:
        count: how many inputs.
        seed: the same seed and versions of the libraries make the same inputs.
        kinds: the names of the kinds.
        run: the folder of a finished run.
        work: a folder in which the inputs are written and removed again.
        kept: the folder into which inputs that fail are moved.
    """
    shares = {kind: KINDS[kind].share for kind in kinds}
    child = Child(run)
    for kind, share in shares.items():
        number = max(1, -int(-count * share // sum(shares.values())))
        yield kind, _fuzz_kind(kind, number, seed, child, run, work, kept)
    child.close()


def _fuzz_kind(
    kind: str, number: int, seed: int, child: Child, run: Path, work: Path, kept: Path
) -> Tally:
    tally, strategy = Tally(), KINDS[kind].make(run)
    for i in range(number):
        given = generated(strategy, zlib.crc32(f"{seed} {kind} {i}".encode()))
        folder = work / f"{kind}-{i:04d}"
        given.write(folder)
        tried = child.try_one(kind, folder)
        tally.outcomes[tried.outcome] += 1
        if tried.outcome == "failed":
            tally.failures.append((_keep(given, kept / folder.name, seed, tried), tried.told))
        shutil.rmtree(folder)
    return tally


def generated(strategy: SearchStrategy[Input], seed: int) -> Input:
    """Return the input that a strategy makes of a seed.

    In one run of many inputs hypothesis makes most of them of parts of those before. Therefore each
    is made in a run of its own, whose first input is always the simplest and whose second is not:
    the two differ in their first choice, which here is a number that does not matter.
    """
    made: list[Input] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=2,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.integers(), strategy)
    def collect(_: int, given: Input) -> None:
        made.append(given)

    collect()
    return made[-1]


def _keep(given: Input, folder: Path, seed: int, tried: Tried) -> Path:
    """Write an input that failed into a folder where it stays, with how to repeat it."""
    if folder.exists():
        shutil.rmtree(folder)
    given.write(folder)
    (folder / INPUT).write_bytes(pickle.dumps(given))
    (folder / "FAILED.txt").write_text(
        f"seed {seed}; to try it again, from the project's root:\n"
        f"  PYTHONPATH=tests .venv/bin/python -m fuzz --again {folder}\n\n{tried.told}\n"
    )
    return folder

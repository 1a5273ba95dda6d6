"""The short form of `make fuzz`: a few inputs of every kind, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.cases import Input
from fuzz.child import Child
from fuzz.driver import fuzz
from fuzz.kinds import KINDS

from ppt.tracking.record import RunRecord

COUNT = 60


def test_no_input_fails(tiny_run: RunRecord, tmp_path: Path) -> None:
    run = Path(tiny_run.folder)
    folders = tmp_path / "inputs", tmp_path / "failures"
    tallies = dict(fuzz(COUNT, 1, list(KINDS), run, *folders))
    assert sum(tally.outcomes.total() for tally in tallies.values()) >= COUNT
    assert [failure for tally in tallies.values() for failure in tally.failures] == []
    assert all(tally.outcomes for tally in tallies.values())


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("crash", "died with exit code -11"),
        ("leave", "died with exit code 0"),
        ("compute", "takes more than 0.5 seconds"),
        ("wait", "waits for more than 0.5 seconds"),
        ("fill", "MemoryError"),
        ("assert", "AssertionError: other pixels"),
    ],
)
def test_what_crashes_hangs_or_is_wrong_fails_and_the_next_is_tried(
    tmp_path: Path, kind: str, told: str
) -> None:
    child = Child(tmp_path, "fuzz.broken", seconds=0.5)
    Input({}).write(tmp_path / "input")
    tried = child.try_one(kind, tmp_path / "input")
    assert (tried.outcome, told in tried.told) == ("failed", True), tried.told
    assert child.try_one("fine", tmp_path / "input").outcome == "right"
    child.close()

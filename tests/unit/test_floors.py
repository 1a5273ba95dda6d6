"""The structure of the package: which room may use which, and how large a room may be."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ppt"
FLOORS = [  # from the ground; a room may use the rooms on lower floors only
    {"config"},
    {"images", "store", "toybox", "downloads"},
    {"data", "evaluation", "batches"},
    {"models"},
    {"labels", "training"},
    {"synthesis", "tracking"},
    {"steps"},
    {"serving", "report"},
    {"curriculum", "predict"},
    {"experiments"},
    {"distributed"},
    {"doctor"},
]
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 0.15
"""The largest share of the package's lines that a room may have."""


def _imports(path: Path) -> set[str]:
    """Every module or name that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_uses_only_rooms_below_it(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    for name in _imports(path):
        package, *rest = name.split(".")
        assert package != "jobs", f"{path.name} imports a command: {name}"
        assert package != "ray" or room == "distributed", f"Ray outside of distributed/: {name}"
        if package == "ppt" and rest and rest[0] not in (room, "__version__"):
            assert _floor(rest[0]) < _floor(room), f"{room} uses {name}, which is not below it"


def test_no_room_is_too_large() -> None:
    lines: Counter[str] = Counter()
    for path in FILES:
        lines[_room(path)] += len(path.read_text().splitlines())
    for room, number in lines.items():
        assert number <= MOST_LINES * lines.total(), f"{room} has {number} of {lines.total()} lines"


def test_at_most_two_files_lie_outside_of_rooms() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 2


def test_no_two_files_have_one_name() -> None:
    """Only a command in `jobs/` may have the name of a file of the package, as of its step."""
    names = Counter(path.stem for path in FILES if path.stem != "__init__")
    assert [name for name, number in names.items() if number > 1] == []


WITH_TRUTH = {"prepare", "evaluate", "label_quality"}
"""The steps that read or write the masks of people; nothing that trains uses what they make."""


def test_training_cannot_reach_ground_truth() -> None:
    """No module between a label and a checkpoint names the table of people's masks."""
    rooms = ("batches", "models", "labels", "training", "synthesis")
    files = [path for room in rooms for path in (PACKAGE / room).glob("*.py")]
    files += [p for p in (PACKAGE / "steps").glob("*.py") if p.stem not in WITH_TRUTH]
    files += [PACKAGE / "curriculum" / "stages.py"]
    files += [PACKAGE / "distributed" / f"{name}.py" for name in ("ray_runner", "stream", "actors")]
    for path in files:
        text = path.read_text()
        assert "ground_truth" not in text and "GROUND_TRUTH" not in text, path

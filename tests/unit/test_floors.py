"""The rooms' order: Ray on the top floor only, and nobody looks up."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = [  # from the ground; a room may use those at or below its own floor
    {
        *("config", "schema", "masks", "expressions", "metrics", "protocols", "drawing"),
        *("diagnosis", "table3"),
    },
    {"store", "toybox"},
    {"data"},
    {"models"},
    {"labels", "engine", "schedule", "checkpoint"},
    {"predict"},
    {"pipeline"},
]
FILES = sorted(path for path in (ROOT / "ppt").rglob("*.py"))


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def _floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_uses_only_those_below_it(path: Path) -> None:
    room = _room(path.relative_to(ROOT / "ppt").parts)
    if room == "__init__":
        return
    for name in _imports(path):
        package, *rest = name.split(".")
        assert package != "jobs", f"{path.name} imports a command: {name}"
        assert package != "ray" or room == "pipeline", f"Ray below the pipeline: {name}"
        if package == "ppt" and rest and rest[0] != "__version__":
            assert _floor(rest[0]) <= _floor(room), f"{room} looks up at {name}"


def test_the_main_path_is_four_files() -> None:
    path = [
        "jobs/train.py",
        "ppt/pipeline/curriculum.py",
        "ppt/pipeline/training.py",
        "ppt/engine.py",
    ]
    for caller, callee in zip(path, path[1:], strict=False):
        module = callee.removesuffix(".py").replace("/", ".")
        assert any(name.startswith(module) for name in _imports(ROOT / caller)), (caller, callee)


def test_training_cannot_reach_ground_truth() -> None:
    """No module between a label and a checkpoint names the table of people's masks."""
    for name in ("training", "stream", "rows", "mixture", "selection", "label", "synthesise"):
        text = (ROOT / "ppt" / "pipeline" / f"{name}.py").read_text()
        assert "ground_truth" not in text and "GROUND_TRUTH" not in text, name

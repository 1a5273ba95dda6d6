"""The curricula that come with ppt, which are found by their names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ppt.config.curriculum import ConfigError
from ppt.config.messages import near

CURRICULA = Path(__file__).parents[1] / "curricula"
"""The folder of the curricula, of the rows of ablations and of the sweeps that come with ppt."""


def find_curriculum(path: str | Path, *, folder: bool = False, beside: Path = Path()) -> Path:
    """Return the path of a YAML file, which is given by its path or by the name of a curriculum.

    A path where there is something is taken before a name.

    Args:
        path: a path; or a name, which is a file's path in `CURRICULA` without its suffix, or the
            last part of that: `quickstart`, `paper/refcoco`, `refcoco`.
        folder: whether a folder of YAML files is wanted, such as `table3`, instead of a file.
        beside: the folder to which a path is relative; by default the working directory.

    Returns:
        The path of the named curriculum, or `beside / path` if no curriculum has this name.

    Raises:
        ConfigError: if several curricula have this name.
    """
    there = beside / path
    if os.path.exists(there) and os.path.isdir(there) == folder:
        return there
    return named_curriculum(Path(path), folder=folder) or there


def named_curriculum(name: Path, *, folder: bool = False) -> Path | None:
    """Return the path of the curriculum that has a name, or None if there is none.

    Raises ConfigError if several curricula have this name.
    """
    found = [
        path for path in _all(folder) if _name(path).parts[-len(name.parts) :] == name.parts != ()
    ]
    if len(found) > 1:
        names = ", ".join(str(_name(path)) for path in found)
        raise ConfigError(f"{str(name)!r} is the name of several curricula: give one of {names}")
    return found[0] if found else None


def near_curricula(path: str | Path, *, folder: bool = False) -> str:
    """Return the end of a message about a curriculum that is not there: the nearest name."""
    names = [_name(found) for found in _all(folder)]
    known = [str(name) for name in names] + [name.name for name in names]
    return near(str(path).removesuffix(".yaml"), known)


def _all(folder: bool) -> Iterator[Path]:
    files = sorted(CURRICULA.rglob("*.yaml"))
    yield from dict.fromkeys(f.parent for f in files if f.parent != CURRICULA) if folder else files


def _name(path: Path) -> Path:
    """Return the name of a curriculum, as its whole path in `CURRICULA`."""
    return path.relative_to(CURRICULA).with_name(path.name.removesuffix(".yaml"))

"""What was given in place of a run, a checkpoint or a store, for messages that say what to give."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ppt.config import ConfigError
from ppt.config.load import RUN_CURRICULUM, load_run, place_of_run
from ppt.store.checkpoint_files import GENERATOR, MANIFEST

SUMMARY = "summary.json"
"""The file in the folder of a run by which it is known."""


@dataclass(frozen=True)
class _Thing:
    """What was recognised, and where that lies which belongs to it, as far as this is known."""

    kind: str
    run: str | None = None
    checkpoint: str | None = None
    store: str | None = None


def instead_of(wanted: Literal["run", "checkpoint", "store"], given: str | Path) -> str:
    """Return the end of a message about something that is not what was wanted.

    It says what the path or the word is and what to give; it is empty if nothing is known of it.
    """
    thing = _recognised(given)
    if thing is None:
        return ""
    of_run = ("the run's folder", thing.run)
    what, where = {
        "run": of_run,
        "checkpoint": ("its folder", thing.checkpoint) if thing.checkpoint else of_run,
        "store": ("its store", thing.store),
    }[wanted]
    told = f": it is {thing.kind}: give {what}"
    if where is None:
        return told
    absent = wanted != "store" and "://" not in where and not Path(where).is_dir()
    return f"{told}, {where!r}{', which `ppt train` makes' if absent else ''}"


def runs_in(folder: Path) -> str:
    """Return the end of an error message that lists the runs in a folder."""
    names = sorted(path.parent.name for path in folder.glob(f"*/{SUMMARY}"))
    return f"; in {str(folder)!r} there are the runs {', '.join(names)}" if names else ""


def _recognised(given: str | Path) -> _Thing | None:
    path = Path(given)
    if _is_run(path) or (path.is_file() and _is_run(path.parent)):
        run = path if _is_run(path) else path.parent
        kind = "the folder of a run" if run == path else "a file of a run"
        return _Thing(kind, run=str(run), store=_store_of(run))
    for folder, kind in ((path, "a checkpoint"), (path.parent, "a file of a checkpoint")):
        if path.exists() and (folder / GENERATOR).is_file() and (folder / MANIFEST).is_file():
            return _Thing(kind, checkpoint=str(folder))
    if re.fullmatch("[0-9a-f]{4,64}", str(given)):
        for folder in Path("runs", "store").glob(f"*/{given}*"):
            is_checkpoint = folder.parent.name == "checkpoints"
            kind = f"the digest of a node in {folder.parent.as_posix()!r}"
            return _Thing(kind, checkpoint=str(folder) if is_checkpoint else None, store="runs")
    try:
        store, name = place_of_run(path) or ("", "")
    except ConfigError:
        return None
    return _Thing("a curriculum", run=f"{store}/{name}", store=store) if name else None


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in (RUN_CURRICULUM, SUMMARY))


def _store_of(run: Path) -> str | None:
    """Return the store of a run: beside its folder, or where it was trained."""
    if (run.absolute().parent / "store").is_dir():
        return str(run.parent)
    try:
        return load_run(run).store
    except ConfigError:
        return None

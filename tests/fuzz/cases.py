"""What an input is, how it lies in a folder, and what may come of it."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import typer
from hypothesis.strategies import SearchStrategy
from typer.testing import CliRunner, Result

from ppt.config import ConfigError
from ppt.jobs.common import command

CASE = "case.pickle"
"""The file beside the input that holds what the check needs to know of it."""

LONGEST_LINE = 1_100
"""The most characters of a line that is still clear."""

MOST_LINES = 120
"""The most lines in which a file with many mistakes is told."""

Outcome = Literal["quarantined", "told", "right"]


@dataclass(frozen=True)
class Link:
    """In place of a file's bytes: a symbolic link to a path."""

    to: str


@dataclass(frozen=True)
class Pipe:
    """In place of a file's bytes: a named pipe, which blocks whoever reads it."""


@dataclass(frozen=True)
class Folder:
    """In place of a file's bytes: a folder."""


Content = bytes | Link | Pipe | Folder


@dataclass(frozen=True)
class Input:
    """Files by their paths, and what the check of their kind needs to know."""

    files: Mapping[str, Content]
    about: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the files, except those whose names no file system takes."""
        folder.mkdir(parents=True)
        (folder / CASE).write_bytes(pickle.dumps(self.about))
        for name, content in self.files.items():
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _make(path, content)
            except (OSError, ValueError):
                continue


def _make(path: Path, content: Content) -> None:
    match content:
        case Link(to):
            path.symlink_to(to)
        case Pipe():
            os.mkfifo(path)
        case Folder():
            path.mkdir(exist_ok=True)
        case bytes():
            path.write_bytes(content)


def read_about(folder: Path) -> dict[str, Any]:
    """Return `Input.about` of an input that was written."""
    return pickle.loads((folder / CASE).read_bytes())


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    `make` gives the strategy of its inputs; it is called with a folder that holds a finished run.
    `check` gets the folder of an input, what is known of it and the folder of the run. It returns
    the outcome, and raises any exception if the input was not dealt with as it must be.
    """

    make: Callable[[Path], SearchStrategy[Input]]
    check: Callable[[Path, dict[str, Any], Path], Outcome]
    share: float = 1.0  # of the inputs, beside those of other kinds


# ---------------------------------------------------------------- what a check may ask


def clear(text: object) -> str:
    """Return a text that is shown to users, after checking that it is one clear line."""
    line = str(text)
    assert line.strip(), "nothing is told"
    odd = [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not odd, f"characters that steer a terminal: {line!r}"
    assert len(line) <= LONGEST_LINE, f"a line of {len(line)} characters: {line[:200]!r}..."
    assert "Traceback" not in line, line
    return line


def told(error: ConfigError) -> Outcome:
    """The outcome of an error that a command tells, after checking its lines."""

    @command
    def fail() -> None:
        raise error

    with contextlib.redirect_stderr(io.StringIO()) as printed, contextlib.suppress(typer.Exit):
        fail()
    lines = printed.getvalue().splitlines()
    assert 0 < len(lines) <= MOST_LINES, f"{len(lines)} lines"
    for line in lines:
        clear(line)
    return "told"


def ppt(*arguments: str) -> Result:
    """Run a command in this process; anything but its own exit codes is an error."""
    from ppt.jobs.cli import app

    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output, result.output
    assert result.exit_code in (0, 1, 2), result.exit_code
    if result.exit_code == 2:
        lines = result.output.splitlines()
        assert any("rror" in line for line in lines), f"nothing is told: {result.output!r}"
    return result


def balanced(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Check that what went into each table came out or was quarantined."""
    for unit, n in counts.items():
        assert n["in"] == n["out"] + n["quarantined"], f"{unit}: {n}"


def reasoned(rows: Iterable[Mapping[str, Any]]) -> None:
    """Check that each quarantined row has a reason in one clear line."""
    for row in rows:
        clear(row["reason"])

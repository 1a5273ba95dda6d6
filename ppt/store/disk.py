"""Disks that take no more: files are replaced whole, and errors are told in one line."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ppt.config import ConfigError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_TODO = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "give another folder, or make it writable",
    errno.EACCES: "check who may read and write it",
    errno.EPERM: "check who may read and write it",
    errno.ENOTDIR: "give another folder",
    errno.EIO: "the disk is damaged or gone: check it",
}
"""What to do about each error of a disk."""


def disk_fault(error: BaseException) -> ConfigError | None:
    """Return what to tell the user about an error, if it is one of a disk."""
    if not isinstance(error, OSError) or error.errno not in _TODO:
        return None
    number, path = error.errno, error.filename
    where = f"{os.fsdecode(path)}: " if isinstance(path, str | bytes) else ""
    return ConfigError(
        f"{where}{os.strerror(number)}: {_TODO[number]}, then run the command again; what is "
        "complete is kept"
    )


def reason_of(error: OSError) -> str:
    """Return why a folder cannot be made or a file cannot be written."""
    if error.errno == errno.EEXIST:
        return "a file or a broken link is there"
    return error.strerror or str(error)


def check_writable(folder: str | Path, option: str) -> None:
    """Make a folder if it is not there, and check that files can be written into it.

    Raises ConfigError, which names the option that gave the folder, if this cannot be done.
    """
    from fsspec.implementations.local import LocalFileSystem

    if fault := unwritable(LocalFileSystem(), os.path.abspath(folder)):
        raise ConfigError(
            f"{option}: {str(folder)!r} cannot be written to ({fault}): give another folder"
        )


def unwritable(fs: AbstractFileSystem, folder: str) -> str | None:
    """Make a folder if it is not there, and return why no file can be written into it, if none can.

    `folder` is a path of the filesystem.
    """
    probe = f"{folder}/.probe-{uuid.uuid4().hex}"
    try:
        fs.makedirs(folder, exist_ok=True)
        fs.pipe_file(probe, b"ppt")
        fs.rm_file(probe)
    except OSError as error:
        return reason_of(error)
    except Exception as error:  # each filesystem has its own
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def replacing(path: str | Path, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to it at the end of the block.

    After an error it is removed, and an error of the disk names `path`. With a random `suffix`
    several processes may write the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # as of a disk that cannot be written at all
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise

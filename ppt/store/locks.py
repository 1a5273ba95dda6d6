"""Locks in a store, so that two runs do not make the same thing at once.

A lock belongs to an open file of the process that makes something, so it ends with that process,
however it ends. It holds among all processes that see the folder of the store: with and without
Ray, and on different clusters. A store behind a URL has no locks.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ppt.store.nodes import Store

LOCKS = "locks"
"""The folder of a store with a file for each lock that is held."""

_IN_USE = "in-use"
"""The lock that the runs at work in a store hold together."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def locked(store: Store, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock `name` of a store during the block; a store behind a URL has none.

    `on_wait` is called once if another run holds it.
    """
    if store.is_local:
        with locked_file(Path(store.path, LOCKS, name), on_wait):
            yield
    else:
        yield


@contextmanager
def in_use(store: Store, on_wait: Callable[[], None], *, alone: bool = False) -> Iterator[None]:
    """Use a store during the block: beside others who use it or, to remove things, `alone`.

    A store behind a URL, and one that cannot be written, is used by whoever wants.
    """
    with ExitStack() as stack:
        if store.is_local:
            try:
                lock = locked_file(Path(store.path, LOCKS, _IN_USE), on_wait, shared=not alone)
                stack.enter_context(lock)
            except OSError as error:
                if alone or error.errno not in _READ_ONLY:
                    raise
        yield


@contextmanager
def locked_file(
    path: Path, on_wait: Callable[[], None] = lambda: None, *, shared: bool = False
) -> Iterator[None]:
    """Hold a lock during the block by a file of this name, which is removed at the end.

    So are the folders that were made for it, if nothing else is in them. A `shared` lock is held by
    any number at once, but not beside one that is not. A filesystem that knows no locks has none.
    """
    made = [folder for folder in path.parents if not folder.exists()]  # the deepest first
    try:
        file = _lock(path, on_wait, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        try:
            yield
        finally:
            if not shared or _is_last(file):
                path.unlink(missing_ok=True)
            os.close(file)
    finally:
        with suppress(OSError):  # of a folder that is not empty
            for folder in made:
                folder.rmdir()


def _is_last(file: int) -> bool:
    """Return whether nobody else holds a shared lock; it may be given up by this."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock(path: Path, on_wait: Callable[[], None], kind: int) -> int:
    """Create and lock a file, and return its descriptor."""
    told = False
    while True:
        file = _create(path)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                on_wait()
                told = True
            fcntl.flock(file, kind)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return file
        if _is_at(path, file):
            return file
        os.close(file)  # the one who had the lock has removed the file


def _create(path: Path, attempts: int = 100) -> int:
    """Create a file and its folder, if they are not there, and return the file's descriptor.

    Whoever made the folder for a lock may remove it between the two, so both are tried again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except (FileNotFoundError, FileExistsError):
        if attempts == 1:
            raise
    return _create(path, attempts - 1)


def _is_at(path: Path, file: int) -> bool:
    """Return whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False

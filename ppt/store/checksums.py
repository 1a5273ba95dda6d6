"""Checksums of stored files, which tell damage by disks, copies and networks.

Every file is written with its size and its CRC-32, the fastest checksum of Python's library. It
finds every run of up to 32 wrong bits and misses one in four billion of other damages; it is no
protection against an attacker. JSON files hold a checksum of their own content under the key
`checksum`. Files that were written before there were checksums are read without a check.

Files that are read row by row also have a checksum for each piece (`ppt.store.mapped`).
"""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from ppt.config import ConfigError

Checksum = dict[str, Any]
"""The `size` of a file in bytes and its `crc32` in hexadecimal digits; or also its `pieces`."""

DAMAGED = "is damaged: its checksum is not that with which it was written"
"""What is wrong with a file whose content has changed."""

PIECE = 2**18
"""The number of bytes of a file that have a checksum of their own."""

_CHUNK = 2**20
"""The number of bytes that are read at once."""

_verified: set[tuple[str, str]] = set()
"""The files that this process has found whole: path and state, which has time and size."""


class DamagedFile(ConfigError):
    """A stored file is not as it was written; the message names it and says what to do."""

    def __init__(self, message: str, digest: str | None = None, bucket: int | None = None) -> None:
        """`digest` is that of the file's node; `bucket` can be made anew without the others."""
        super().__init__(message)
        self.digest = digest
        self.bucket = bucket


def checksum_of(data: bytes | pa.Buffer) -> Checksum:
    """Return the checksum of a file's content."""
    return {"size": len(memoryview(data)), "crc32": f"{zlib.crc32(data):08x}"}


class SummedFile:
    """A file that is being written, and the checksum of what has been written."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = self._crc = self._crc_of_piece = 0
        self._pieces: list[str] = []

    def write(self, data: Any) -> int:
        """Write bytes. This, `tell` and `flush` are what Arrow asks of a file."""
        self._file.write(data)
        view = memoryview(data)
        self._crc = zlib.crc32(view, self._crc)
        while len(view):
            part = view[: PIECE - self._size % PIECE]
            self._crc_of_piece = zlib.crc32(part, self._crc_of_piece)
            self._size += len(part)
            if self._size % PIECE == 0:
                self._end_piece()
            view = view[len(part) :]
        return len(memoryview(data))

    def tell(self) -> int:
        """Return the number of bytes that were written."""
        return self._size

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def checksum(self) -> Checksum:
        """Return the checksum of the file, which is written to its end, with its pieces."""
        if self._size % PIECE:
            self._end_piece()
        return {"size": self._size, "crc32": f"{self._crc:08x}", "pieces": "".join(self._pieces)}

    def _end_piece(self) -> None:
        self._pieces.append(f"{self._crc_of_piece:08x}")
        self._crc_of_piece = 0


def pieces_of(data: bytes | pa.Buffer) -> str:
    """Return the CRC-32 of each `PIECE` of a file, 8 hexadecimal digits each, as one text."""
    view = memoryview(data)
    return "".join(
        f"{zlib.crc32(view[start : start + PIECE]):08x}" for start in range(0, len(view), PIECE)
    )


def fault_of(found: Checksum, expected: Checksum) -> str | None:
    """Return what is wrong with a file; None if it is as it was written."""
    if found["size"] != expected.get("size"):
        return f"has {found['size']} bytes instead of {expected.get('size')}"
    if found["crc32"] != expected.get("crc32"):
        return DAMAGED
    return None


def is_verified(fs: Any, path: str) -> bool:
    """Return whether this process has found the file whole, and it has not changed since."""
    return (path, fs.ukey(path)) in _verified


def verify(fs: Any, path: str, expected: Checksum) -> str | None:
    """Compare a file with its checksum, once in each process.

    Returns:
        What is wrong with the file, or None.
    """
    try:
        key = path, fs.ukey(path)
        if key in _verified:
            return None
        size = crc = 0
        with fs.open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    except OSError as error:
        return cannot_read(error)
    fault = fault_of({"size": size, "crc32": f"{crc:08x}"}, expected)
    if fault is None:
        _verified.add(key)
    return fault


def read_verified(fs: Any, path: str, expected: Checksum) -> tuple[bytes, str | None]:
    """Return the content of a file, and what is wrong with it or None."""
    key = path, fs.ukey(path)
    data = fs.cat_file(path)
    fault = fault_of(checksum_of(data), expected)
    if fault is None:
        _verified.add(key)
    return data, fault


def cannot_read(error: OSError) -> str:
    """Say that a file is missing, or that its disk or its content is damaged.

    Raises `error` again if it is something else, such as a network that is down: nothing is made
    anew because of that.
    """
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if error.errno == errno.EIO or type(error) is OSError and error.errno is None:  # of pyarrow
        return f"is damaged: {str(error).splitlines()[0]}"
    raise error


# ---------------------------------------------------------------- JSON files


def seal(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a JSON file with this content and its checksum."""
    content = json.loads(json.dumps(content, default=str))
    return json.dumps({**content, "checksum": _checksum_of_json(content)}, indent=2).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """Return the content of a file that `seal` made, without the checksum.

    Raises ValueError, with what is wrong, for any other content.
    """
    if not data:
        raise ValueError("is empty")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is cut short or damaged: it is no JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError("is damaged: it holds no JSON object")
    checksum = content.pop("checksum", None)
    is_old = checksum is None and "checksums" not in content and not _ends_sealed(content)
    if not is_old and checksum != _checksum_of_json(content):
        raise ValueError(DAMAGED)
    return content


def _ends_sealed(content: Mapping[str, Any]) -> bool:
    """Return whether the last value is the checksum of the others, whatever its name has become."""
    others = dict(content)
    return bool(others) and others.popitem()[1] == _checksum_of_json(others)


def is_sealed(data: bytes) -> bool:
    """Return whether a JSON file has a checksum."""
    return "checksum" in json.loads(data)


def _checksum_of_json(content: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


# ---------------------------------------------------------------- folders outside of nodes


def check_files(folder: Path, expected: Mapping[str, Checksum], todo: str) -> None:
    """Check files of a local folder. Raises DamagedFile, which names the file and what to do."""
    for name, checksum in expected.items():
        if fault := verify(LocalFileSystem(), str(folder / name), checksum):
            raise DamagedFile(f"{folder / name} {fault}: {todo}")

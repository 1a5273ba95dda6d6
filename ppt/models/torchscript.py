"""The tensors of a TorchScript archive, read without torch's interpreter.

An archive is a zip file. Its `data.pkl` pickles the tree of modules, each as an object of a class
`__torch__.MODULE.CLASS` whose state is a dictionary; `data/KEY` holds the numbers of a storage; the
source of a class, in `code/__torch__/MODULE.py`, lists which attributes are parameters or buffers.
`torch.jit.load` compiles that source and may execute it. Here the pickle is read by an unpickler
that can make nothing but modules and places of tensors, and of the source only the lists are read.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MOST_CODE = 16 * 2**20
"""The largest source file that is read, in bytes."""


def check_members(path: Path) -> None:
    """Check that the members of a zip file are as torch writes them: whole and not compressed.

    Only source code may be compressed. A member therefore never takes more memory than the file
    has bytes. Raises ValueError for other files.
    """
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if "/code/" not in m.filename]
    if packed := [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(f"is not as torch writes it: {packed[0]!r} in it is compressed")
    claimed, size = sum(m.file_size for m in members), path.stat().st_size
    if claimed > size:
        raise ValueError(f"claims to hold {claimed:,} bytes, but has only {size:,}")


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of an archive by their names, as its `state_dict()` has them.

    Raises:
        pickle.UnpicklingError: the archive holds other objects than modules and tensors.
        Exception: whatever the damaged bytes lead to.
    """
    with zipfile.ZipFile(path) as archive:
        (listed,) = (name for name in archive.namelist() if name.endswith("/constants.pkl"))
        reader = _Reader(archive, listed.removesuffix("constants.pkl"))
        return dict(reader.tensors())


class _Module:
    """A module of the archive: its attributes are those of the instance."""

    source = ""  # MODULE.CLASS

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):  # its class makes the attributes with code of its own
            raise pickle.UnpicklingError("it holds a module that only its own code can restore")
        vars(self).update(state)


class _Place(NamedTuple):
    """The place of a tensor's numbers in a storage of the archive."""

    dtype: torch.dtype
    storage: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle._Unpickler):
    """An unpickler that knows only modules and the places of tensors.

    It is Python's own in Python, whose memo is a dictionary: the numbers in a hostile pickle do not
    make it reserve memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            source = f"{module}.{name}".removeprefix("__torch__.")
            return type("_Module", (_Module,), {"source": source})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A function of its own for each pickle, which can set attributes of what it is given.
            return lambda storage, *numbers: _Place(storage[0], storage[1], *numbers[:3])
        if (module, name) == ("collections", "OrderedDict"):  # the hooks of a tensor: none
            return dict
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str]:
        kind, dtype, key, _device, _length = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        return dtype, str(key)


class _Reader:
    """Reads one archive."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        """`folder` is that of all members, with a slash at its end."""
        self._archive = archive
        self._folder = folder
        self._lists: dict[str, set[str]] = {}  # by class: the names of its parameters and buffers
        self._storages: dict[tuple[torch.dtype, str], Tensor] = {}
        if f"{folder}byteorder" in archive.namelist():
            order = self._read("byteorder").decode()
            if order != sys.byteorder:
                raise ValueError(f"its numbers are {order} endian")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter and buffer with its name."""
        root = _Unpickler(io.BytesIO(self._read("data.pkl"))).load()
        yield from self._walk(root, "", set())

    def _walk(self, module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(module, _Module) or id(module) in seen:
            raise ValueError(f"{prefix or 'its root'} is no module, or is there twice")
        seen.add(id(module))
        wanted = self._listed(type(module).source)
        attributes = vars(module).items()
        for name, value in attributes:
            if isinstance(value, _Place) and name in wanted:
                yield prefix + name, self._tensor(value)
        for name, value in attributes:
            if isinstance(value, _Module):
                yield from self._walk(value, f"{prefix}{name}.", seen)

    def _listed(self, source: str) -> set[str]:
        """Return the names that the source of a class lists as parameters and buffers."""
        if source not in self._lists:
            self._lists[source] = set()
            *module, name = ["__torch__", *source.split(".")]
            file = f"code/{'/'.join(module)}.py"
            if self._archive.getinfo(self._folder + file).file_size > _MOST_CODE:
                raise ValueError(f"{file} in it is too large")
            code = self._read(file).decode()
            body = re.search(rf"^class {re.escape(name)}\(Module\):\n((?:[ \n].*\n?)*)", code, re.M)
            if body is None:
                raise ValueError(f"{file} in it has no class {name}")
            for names in re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]", body[1], re.M):
                self._lists[source] |= set(re.findall(r'"([^"]+)"', names))
        return self._lists[source]

    def _tensor(self, place: _Place) -> Tensor:
        key = place.dtype, place.storage
        if key not in self._storages:
            numbers = bytearray(self._read(f"data/{place.storage}"))
            self._storages[key] = (
                torch.frombuffer(numbers, dtype=place.dtype)
                if numbers
                else torch.empty(0, dtype=place.dtype)
            )
        return self._storages[key].as_strided(place.size, place.stride, place.offset)

    def _read(self, name: str) -> bytes:
        """Return the content of a member; a wrong checksum is an error."""
        return self._archive.read(self._folder + name)

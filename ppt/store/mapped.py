"""Memory-mapped tables, whose content is compared with its checksums piece by piece.

A bucket of features may have gigabytes. To check it whole before its first row is read would delay
the start of a stage, so each piece of a file is checked when this process first reads from it. What
is no array, such as keys and sizes, is checked when the file is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from ppt.store.arrays import is_ragged, is_tensor, ragged_values
from ppt.store.checksums import DAMAGED, PIECE, pieces_of


class MappedTable:
    """A table in an Arrow file that is mapped into memory. Its arrays are read row by row.

    Args:
        memory: the whole file.
        pieces: the checksums of its pieces, as `pieces_of` returns them; None if the file is not
            to be checked here.
        damaged: makes the error that is raised, from what is wrong.
    """

    def __init__(
        self, memory: pa.Buffer, pieces: str | None, damaged: Callable[[str], Exception]
    ) -> None:
        self._memory = memory
        self._damaged = damaged
        self._pieces = pieces
        self._unchecked = np.full(-(-memory.size // PIECE) if pieces else 0, True)
        self._left = len(self._unchecked)
        if pieces is not None and len(pieces) != 8 * self._left:
            raise damaged(DAMAGED)
        self._check(memory.size - 1, memory.size)  # the end, which says what lies where
        self._table = pa.ipc.open_file(pa.BufferReader(memory)).read_all()
        self._arrays: dict[str, list[np.ndarray]] = {}
        self._offsets: dict[str, list[np.ndarray]] = {}
        for field in self._table.schema:
            if is_tensor(field):
                chunks = _chunks(self._table[field.name])
                self._arrays[field.name] = [chunk.to_numpy_ndarray() for chunk in chunks]
            elif is_ragged(field):
                chunks = _chunks(self._table[field.name])
                self._arrays[field.name] = [ragged_values(chunk) for chunk in chunks]
                self._offsets[field.name] = [chunk.offsets.to_numpy() for chunk in chunks]
        lengths = [len(chunk) for chunk in _chunks(self._table.column(0))]
        self._bounds = np.append(0, np.cumsum(lengths))
        if self._left:
            self._check_others()

    @property
    def schema(self) -> pa.Schema:
        """The schema of the whole table."""
        return self._table.schema

    def __len__(self) -> int:
        return len(self._table)

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column that has no arrays."""
        assert name not in self._arrays, name
        return self._table[name]

    def rows(self, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return a copy of the arrays of some rows of a tensor column: [rows, ...]."""
        rows = np.asarray(rows, np.int64)
        first, *others = self._arrays[name]
        if not others and not self._left:
            return first[rows]
        found = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for place, row in zip(found, rows.tolist(), strict=True):
            place[...] = self.row(name, row)
        return found

    def row(self, name: str, row: int) -> np.ndarray:
        """Return the array of a row of a tensor column or a ragged one, a view of the file."""
        chunk = int(self._bounds.searchsorted(row, side="right")) - 1
        array, row = self._arrays[name][chunk], row - int(self._bounds[chunk])
        if name in self._offsets:
            start, stop = self._offsets[name][chunk][row : row + 2].tolist()
            return self._check_array(array[start:stop])
        return self._check_array(array[row])

    def _check_array(self, array: np.ndarray) -> np.ndarray:
        if self._left and array.nbytes:
            start = array.__array_interface__["data"][0] - self._memory.address
            self._check(start, start + array.nbytes)
        return array

    def _check_others(self) -> None:
        """Check all pieces but those that lie within an array."""
        others = np.full(len(self._unchecked), True)
        for array in (array for arrays in self._arrays.values() for array in arrays):
            start = array.__array_interface__["data"][0] - self._memory.address
            others[-(-start // PIECE) : (start + array.nbytes) // PIECE] = False
        for piece in np.flatnonzero(others).tolist():
            self._check(piece * PIECE, piece * PIECE + 1)

    def _check(self, start: int, stop: int) -> None:
        """Check the pieces with these bytes of the file that were not checked yet."""
        first, last = start // PIECE, -(-stop // PIECE)
        for piece in (np.flatnonzero(self._unchecked[first:last]) + first).tolist():
            assert self._pieces is not None
            found = pieces_of(self._memory[piece * PIECE : (piece + 1) * PIECE])
            if found != self._pieces[8 * piece : 8 * piece + 8]:
                raise self._damaged(DAMAGED)
            self._unchecked[piece] = False
            self._left -= 1


def _chunks(column: pa.ChunkedArray) -> list[pa.Array]:
    """Return the parts of a column that have rows; an empty column is one part."""
    return [chunk for chunk in column.chunks if len(chunk)] or [column.combine_chunks()]

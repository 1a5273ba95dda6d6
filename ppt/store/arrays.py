"""Arrays as columns of Arrow tables, with one array in each row.

Arrays of one shape are Arrow's fixed-shape tensors; those that differ in their length are lists.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def tensor_field(name: str, shape: tuple[int, ...], dtype: str = "float16") -> pa.Field:
    """Return a field that holds an array of this shape in each row."""
    return pa.field(name, _tensor_type(shape, np.dtype(dtype)), nullable=False)


def _tensor_type(shape: tuple[int, ...], dtype: np.dtype) -> pa.FixedShapeTensorType:
    return pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), shape)


def is_tensor(field: pa.Field) -> bool:
    """Return whether a field is a `tensor_field`."""
    return isinstance(field.type, pa.FixedShapeTensorType)


def tensor_bytes(field: pa.Field) -> int:
    """Return the number of bytes of the array in one row of a `tensor_field`."""
    storage = field.type.storage_type
    return storage.list_size * storage.value_type.bit_width // 8


def to_tensors(array: np.ndarray) -> pa.FixedShapeTensorArray:
    """Convert an array [rows, ...] to a column; a contiguous array is not copied."""
    if not len(array):
        return pa.array([], _tensor_type(array.shape[1:], array.dtype))
    # Raveling gives the first axis its stride, which numpy leaves open where there is one row.
    whole = np.ascontiguousarray(array).ravel().reshape(array.shape)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(whole)


def from_tensors(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of tensors as an array [rows, ...].

    A column of one chunk is not copied; the result is then a read-only view.
    """
    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return whole.to_numpy_ndarray()


def ragged_field(name: str, width: int) -> pa.Field:
    """Return a field that holds a float16 array [any length, width] in each row."""
    return pa.field(name, pa.large_list(pa.list_(pa.float16(), width)), nullable=False)


def to_ragged(values: np.ndarray, lengths: Sequence[int]) -> pa.LargeListArray:
    """Convert arrays that follow each other in `values`, float16 [sum of lengths, width]."""
    offsets = np.append(0, np.cumsum(lengths, dtype=np.int64)).astype(np.int64)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.LargeListArray.from_arrays(offsets, rows)


def is_ragged(field: pa.Field) -> bool:
    """Return whether a field is a `ragged_field`."""
    return pa.types.is_large_list(field.type)


def ragged_values(lists: pa.LargeListArray) -> np.ndarray:
    """Return the arrays of a ragged column one after another, [sum of lengths, width].

    Nothing is copied. The array of row r lies from the r-th of `lists.offsets` to the next.
    """
    width = lists.type.value_type.list_size
    return lists.values.values.to_numpy().reshape(-1, width)

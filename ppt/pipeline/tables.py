"""Rows of one table by keys of another: small indices that a process keeps."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from ppt.schema import from_fixed_binary
from ppt.store import Node, bucket_of

OPEN_BUCKETS = 256
"""How many memory-mapped buckets a process keeps open."""


@functools.lru_cache(maxsize=OPEN_BUCKETS)
def mapped(node: Node, bucket: int) -> pa.Table:
    """A bucket of an Arrow table, memory-mapped once a process."""
    return node.read(bucket)


@functools.lru_cache(maxsize=OPEN_BUCKETS)
def row_of(node: Node, bucket: int, key: str) -> dict[str, int]:
    """Row numbers by the values of column `key` in a bucket."""
    return {value: row for row, value in enumerate(mapped(node, bucket)[key].to_pylist())}


def lookup_text(node: Node, texts: Iterable[str], column: str) -> np.ndarray:
    """[texts, ...]: the rows of a `words` or `phrases` table for some texts, in their order.

    Raises KeyError for a text that was never encoded.
    """
    rows = []
    for text in texts:
        bucket = bucket_of(text, node.num_buckets)
        table = mapped(node, bucket)
        field = table.schema.field(column)
        row = row_of(node, bucket, "text")[text]
        rows.append(from_fixed_binary(table[column].slice(row, 1), field)[0])
    return np.stack(rows)


def lookup_number(node: Node, text: str, column: str) -> int:
    """One number of a text's row, e.g. `num_words`."""
    bucket = bucket_of(text, node.num_buckets)
    return mapped(node, bucket)[column][row_of(node, bucket, "text")[text]].as_py()

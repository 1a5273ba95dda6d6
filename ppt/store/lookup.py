"""Look-up of rows by their keys, with tables and indices that each process keeps in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from ppt.store.mapped import MappedTable
from ppt.store.nodes import DATA, Node, bucket_of

OPEN_BUCKETS = 16_384
"""The number of buckets that a process keeps open.

A memory-mapped bucket holds no file descriptor and no memory of its own, so that this is only to
stay below the number of maps that Linux gives a process, 65,530.
"""

OF_ALL_TEXTS = ("texts", "num_buckets")
"""The keys in the specification of a table of texts that do not affect the row of a single text."""


@functools.lru_cache(maxsize=OPEN_BUCKETS)
def mapped(node: Node, bucket: int, table: str = DATA) -> MappedTable:
    """Return a bucket of an Arrow table, which is memory-mapped once in each process."""
    return node.map(bucket, table)


@functools.lru_cache(maxsize=OPEN_BUCKETS)
def row_of(node: Node, bucket: int, key: str) -> dict[str, int]:
    """Return the row number of each value in the column `key` of a bucket."""
    return {value: row for row, value in enumerate(mapped(node, bucket).column(key).to_pylist())}


def lookup_text(node: Node, texts: Iterable[str], column: str) -> np.ndarray:
    """Return the arrays of some texts from a `words` or `phrases` table, in the order of the texts.

    Args:
        node: the table.
        texts: the T texts.
        column: the column that holds the arrays.

    Returns:
        The arrays, stacked to [T, ...].

    Raises:
        KeyError: if a text is not in the table.
    """
    rows = []
    for text in texts:
        bucket = bucket_of(text, node.num_buckets)
        row = row_of(node, bucket, "text")[text]
        rows.append(mapped(node, bucket).row(column, row))
    return np.stack(rows)


def lookup_rows(node: Node, text: str, column: str) -> np.ndarray:
    """Return the array [rows, width] of a text from a `ragged_field`. Raises KeyError."""
    bucket = bucket_of(text, node.num_buckets)
    return mapped(node, bucket).row(column, row_of(node, bucket, "text")[text])


def text_encoding(node: Node) -> dict[str, Any]:
    """Return how the texts of a `words` or `phrases` table were encoded, as JSON-like data.

    A step that looks up texts has this in its digest instead of the table itself, because the rows
    that it reads depend on the encoding alone and not on the other texts of the table.
    """
    encoding = {k: v for k, v in node.made_from["spec"].items() if k not in OF_ALL_TEXTS}
    return {"version": node.made_from["version"], **encoding}

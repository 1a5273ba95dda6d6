"""Look-up of rows by their keys, with tables and indices that each process keeps in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from ppt.store.arrays import from_tensors
from ppt.store.nodes import Node, bucket_of

OPEN_BUCKETS = 256
"""The number of memory-mapped buckets that a process keeps open."""

OF_ALL_TEXTS = ("texts", "num_buckets")
"""The keys in the specification of a table of texts that do not affect the row of a single text."""


@functools.lru_cache(maxsize=OPEN_BUCKETS)
def mapped(node: Node, bucket: int) -> pa.Table:
    """Return a bucket of an Arrow table, which is memory-mapped once in each process."""
    return node.read(bucket)


@functools.lru_cache(maxsize=OPEN_BUCKETS)
def row_of(node: Node, bucket: int, key: str) -> dict[str, int]:
    """Return the row number of each value in the column `key` of a bucket."""
    return {value: row for row, value in enumerate(mapped(node, bucket)[key].to_pylist())}


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
        table = mapped(node, bucket)
        row = row_of(node, bucket, "text")[text]
        rows.append(from_tensors(table[column].slice(row, 1))[0])
    return np.stack(rows)


def lookup_number(node: Node, text: str, column: str) -> int:
    """Return a number that a `words` or `phrases` table holds for a text.

    Args:
        node: the table.
        text: the text.
        column: the numeric column, for example `num_words`.

    Raises:
        KeyError: if the text is not in the table.
    """
    bucket = bucket_of(text, node.num_buckets)
    return mapped(node, bucket)[column][row_of(node, bucket, "text")[text]].as_py()


def text_encoding(node: Node) -> dict[str, Any]:
    """Return how the texts of a `words` or `phrases` table were encoded, as JSON-like data.

    A step that looks up texts has this in its digest instead of the table itself, because the rows
    that it reads depend on the encoding alone and not on the other texts of the table.
    """
    encoding = {k: v for k, v in node.made_from["spec"].items() if k not in OF_ALL_TEXTS}
    return {"version": node.made_from["version"], **encoding}

"""Arrow rows for `ppt.batches.collate`: the features and some of the expressions of pictures."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ppt.batches.sampler import LabelTable
from ppt.store.arrays import from_tensors, is_tensor, to_tensors
from ppt.store.lookup import OPEN_BUCKETS, lookup_number, lookup_text, mapped, row_of
from ppt.store.nodes import Node
from ppt.store.schema import CANDIDATE

EXPRESSION = pa.struct(
    [
        ("expression_id", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("word_features", pa.binary()),  # fp16 [num_words, Dt]
        ("num_words", pa.int32()),
        ("candidates", pa.list_(CANDIDATE)),
    ]
)


@dataclass(frozen=True)
class PictureRow:
    """A picture of a bucket, and those of its expressions that are wanted.

    `expressions` are dictionaries with `expression_id`, `text` and, where there are labels,
    `source` and `candidates`.
    """

    features: Node
    words: Node
    bucket: int
    picture: str
    expressions: Sequence[dict[str, Any]]


def picture_table(rows: Sequence[PictureRow]) -> pa.Table:
    """Make a table with a row for each picture: its features and its `expressions`."""
    places = [
        (mapped(r.features, r.bucket), row_of(r.features, r.bucket, "picture")[r.picture])
        for r in rows
    ]
    columns = dict(_feature_columns(places))
    expressions = [[_expression(row.words, e) for e in row.expressions] for row in rows]
    field = pa.field("expressions", pa.list_(EXPRESSION))
    return pa.Table.from_arrays(
        [*columns.values(), pa.array(expressions, field.type)],
        schema=pa.schema([*columns, field]),
    )


def _feature_columns(
    places: Sequence[tuple[pa.Table, int]],
) -> Iterator[tuple[pa.Field, pa.Array]]:
    for field in places[0][0].schema:
        if field.name == "surgery_tokens":  # needed for pseudo labels only
            continue
        if is_tensor(field):
            rows = [from_tensors(table[field.name])[i] for table, i in places]
            yield field, to_tensors(np.stack(rows))
        else:
            values = [table[field.name][i].as_py() for table, i in places]
            yield field, pa.array(values, field.type)


def _expression(words: Node, expression: dict[str, Any]) -> dict[str, Any]:
    text = expression["text"]
    num_words = lookup_number(words, text, "num_words")
    features = lookup_text(words, [text], "word_features")[0, :num_words]
    return {
        "expression_id": expression["expression_id"],
        "text": text,
        "source": expression.get("source"),
        "word_features": features.tobytes(),
        "num_words": num_words,
        "candidates": expression.get("candidates", []),
    }


# ---------------------------------------------------------------- rows of a plan


@functools.lru_cache(maxsize=OPEN_BUCKETS)
def labels_of(node: Node, table: str, bucket: int) -> pa.Table:
    """Return a bucket of labels, which is read once in each process."""
    return node.read(bucket, table)


def gather(plan: pa.Table, tables: Sequence[LabelTable]) -> pa.Table:
    """Turn rows of a plan (`sampler.PLAN`) into rows of a `picture_table`.

    Each row holds the features of a picture, the expressions that the plan names, and the columns
    `epoch` and `iteration` of the plan.
    """
    rows = []
    for entry in plan.to_pylist():
        source, bucket = tables[entry["table"]], entry["bucket"]
        bucket_labels = labels_of(source.labels, source.table, bucket)
        labels = bucket_labels.take(entry["rows"]).to_pylist()
        picture = labels[0]["picture"]
        rows.append(PictureRow(source.features, source.words, bucket, picture, labels))
    table = picture_table(rows)
    return table.append_column("epoch", plan["epoch"]).append_column("iteration", plan["iteration"])

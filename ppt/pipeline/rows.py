"""Arrow rows for `ppt.data.collate`: a picture's cached features and some of its expressions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ppt.pipeline.tables import lookup_number, lookup_text, mapped, row_of
from ppt.schema import CANDIDATE, from_fixed_binary, to_fixed_binary
from ppt.store import Node

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
    """A picture and those of its expressions that are asked for.

    `expressions` are dictionaries with `expression_id`, `text` and, where there are labels,
    `source` and `candidates`.
    """

    features: Node
    words: Node
    bucket: int
    picture: str
    expressions: Sequence[dict[str, Any]]


def picture_table(rows: Sequence[PictureRow]) -> pa.Table:
    """One row a picture, with the columns that `collate` reads; features are gathered once."""
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
        if field.name == "surgery_tokens":  # only pseudo labels need them
            continue
        if pa.types.is_fixed_size_binary(field.type):
            rows = [from_fixed_binary(table[field.name], field)[i] for table, i in places]
            yield field, to_fixed_binary(np.stack(rows))
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

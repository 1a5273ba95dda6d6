"""Rows of chosen pictures from the tables of a run, one bucket in memory at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ppt.data.pictures import check_picture
from ppt.schema import from_fixed_binary
from ppt.store import DATA, Node, bucket_of


def rows_of(
    node: Node, pictures: Iterable[str], table: str = DATA, columns: Iterable[str] | None = None
) -> dict[str, list[dict]]:
    """The rows of some pictures, by picture."""
    found: dict[str, list[dict]] = defaultdict(list)
    for part in _parts(node, pictures, table, columns):
        for row in part.to_pylist():
            found[row["picture"]].append(row)
    return dict(found)


def images_of(samples: Node, pictures: Iterable[str]) -> dict[str, np.ndarray]:
    """uint8 [H, W, 3] by picture."""
    rows = rows_of(samples, pictures, columns=["picture", "image"])
    return {picture: check_picture(row["image"]) for picture, (row,) in rows.items()}


def surgery_tokens_of(features: Node, pictures: Iterable[str]) -> dict[str, np.ndarray]:
    """CLIP Surgery's tokens [1+L, E] by picture."""
    found: dict[str, np.ndarray] = {}
    for part in _parts(features, pictures, DATA, ["picture", "surgery_tokens"]):
        field = part.schema.field("surgery_tokens")
        tokens = from_fixed_binary(part["surgery_tokens"], field)
        found |= dict(zip(part["picture"].to_pylist(), tokens, strict=True))
    return found


def _parts(
    node: Node, pictures: Iterable[str], table: str, columns: Iterable[str] | None
) -> Iterable[pa.Table]:
    by_bucket: dict[int, set[str]] = defaultdict(set)
    for picture in pictures:
        by_bucket[bucket_of(picture, node.num_buckets)].add(picture)
    for bucket, wanted in sorted(by_bucket.items()):
        rows = node.read(bucket, table, columns)
        yield rows.filter(pc.is_in(rows["picture"], pa.array(sorted(wanted))))

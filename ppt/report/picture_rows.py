"""The rows of chosen pictures in a run's tables, read with one bucket in memory at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ppt.images.pictures import check_picture
from ppt.store.lookup import mapped, row_of
from ppt.store.nodes import DATA, Node, bucket_of


def rows_of(
    node: Node, pictures: Iterable[str], table: str = DATA, columns: Iterable[str] | None = None
) -> dict[str, list[dict]]:
    """Return the rows of the given pictures, by picture."""
    found: dict[str, list[dict]] = defaultdict(list)
    for part in _parts(node, pictures, table, columns):
        for row in part.to_pylist():
            found[row["picture"]].append(row)
    return dict(found)


def images_of(samples: Node, pictures: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the given pictures as uint8 [H, W, 3] RGB, by key."""
    rows = rows_of(samples, pictures, columns=["picture", "image"])
    return {picture: check_picture(row["image"]) for picture, (row,) in rows.items()}


def surgery_tokens_of(features: Node, pictures: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the CLIP Surgery tokens, float16 [1 + L, E], of the given pictures, by key."""
    found: dict[str, np.ndarray] = {}
    for picture in pictures:
        bucket = bucket_of(picture, features.num_buckets)
        row = row_of(features, bucket, "picture")[picture]
        found[picture] = mapped(features, bucket).row("surgery_tokens", row)
    return found


def _parts(
    node: Node, pictures: Iterable[str], table: str, columns: Iterable[str] | None
) -> Iterable[pa.Table]:
    """Yield the rows of the given pictures, bucket by bucket."""
    by_bucket: dict[int, set[str]] = defaultdict(set)
    for picture in pictures:
        by_bucket[bucket_of(picture, node.num_buckets)].add(picture)
    for bucket, wanted in sorted(by_bucket.items()):
        rows = node.read(bucket, table, columns)
        yield rows.filter(pc.is_in(rows["picture"], pa.array(sorted(wanted))))

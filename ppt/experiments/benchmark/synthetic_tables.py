"""Tables of the sizes of real data sets, whose features are random numbers.

What takes time in them does not depend on the numbers: the sizes of pictures, of their features and
of their pseudo labels, how many expressions a picture has, and how long these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from ppt.batches.sampler import LabelTable
from ppt.batches.targets import target_table
from ppt.config import Model
from ppt.images.masks import encode_rle
from ppt.images.pictures import encode_picture
from ppt.models.build import outline_image_text_encoder, outline_segmenter
from ppt.steps.encode import feature_shapes
from ppt.store.arrays import from_tensors, ragged_field, tensor_field, to_ragged, to_tensors
from ppt.store.nodes import DATA, TARGETS, BucketOutput, Count, Node, Store, bucket_of
from ppt.store.schema import LABELS, SAMPLES

HEIGHT, WIDTH = 480, 640
"""The size of the pictures, in pixels: that of most pictures of COCO."""

EXPRESSIONS = 7
"""The expressions of a picture; RefCOCO has 7.1."""

CANDIDATES = (2, 3)
"""The pseudo labels of an expression, in turn."""

FEWEST_WORDS, MOST_WORDS = 4, 13
"""The words of an expression, as the tokenizer counts them."""


@dataclass(frozen=True)
class SyntheticTables:
    """Tables of `num_pictures` pictures in `num_buckets` buckets, as encode and label make them.

    The first `num_readable` pictures have features and words and are of the source h_sem, if there
    are more pictures. The others are of h_ref and cannot be read: they are there to be planned.
    """

    store: Store
    model: Model
    num_pictures: int
    num_buckets: int
    num_readable: int

    def make(self) -> LabelTable:
        """Write the tables, and return them."""
        clip, sam = outline_image_text_encoder(self.model.clip), outline_segmenter(self.model.sam)
        shapes = feature_shapes(clip, sam)
        keys = [f"COCO_train2014_{number:012d}.jpg" for number in range(self.num_pictures)]
        readable = keys[: self.num_readable]
        return LabelTable(
            self._labels(keys, sam.low_res_size, sam.image_size),
            self._features(readable, shapes),
            self._words(readable, clip.text_dim),
        )

    def samples(self, num_pictures: int) -> Node:
        """Write pictures in one bucket, and return their table."""
        node = self._node("samples", buckets=1)
        rng, rows = np.random.default_rng(0), []
        for number in range(num_pictures):
            coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
            image = encode_picture(np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT))))
            row = {"picture": f"COCO_train2014_{number:012d}.jpg", "image": image}
            rows.append({**row, "height": HEIGHT, "width": WIDTH, "expressions": []})
        count = Count(num_pictures, num_pictures)
        table = pa.Table.from_pylist(rows, SAMPLES)
        node.write_bucket(0, BucketOutput({DATA: table}, {"pictures": count}))
        node.write_manifest()
        return node

    def _node(self, kind: str, buckets: int | None = None) -> Node:
        spec = {"synthetic": [self.num_pictures, self.num_readable, self.num_buckets]}
        return self.store.node(kind, spec, buckets=buckets or self.num_buckets)

    def _in_buckets(self, keys: list[str]) -> list[list[str]]:
        buckets: list[list[str]] = [[] for _ in range(self.num_buckets)]
        for key in keys:
            buckets[bucket_of(key, self.num_buckets)].append(key)
        return buckets

    def _features(self, keys: list[str], shapes: Mapping[str, tuple[int, ...]]) -> Node:
        node, rng = self._node("features"), np.random.default_rng(1)
        random = {  # the same for all pictures
            name: rng.standard_normal(shape, np.float32).astype(np.float16)
            for name, shape in shapes.items()
        }
        for bucket, mine in enumerate(self._in_buckets(keys)):
            columns: list[pa.Array] = [
                pa.array(mine, pa.string()),
                pa.array([HEIGHT] * len(mine), pa.int32()),
                pa.array([WIDTH] * len(mine), pa.int32()),
            ]
            fields = [SAMPLES.field(name) for name in ("picture", "height", "width")]
            for name, numbers in random.items():
                columns.append(to_tensors(np.repeat(numbers[None], len(mine), 0)))
                fields.append(tensor_field(name, numbers.shape))
            table = pa.Table.from_arrays(columns, schema=pa.schema(fields))
            node.write_bucket(bucket, BucketOutput({DATA: table}))
        node.write_manifest()
        return node

    def _words(self, keys: list[str], width: int) -> Node:
        node, rng = self._node("words"), np.random.default_rng(2)
        texts = [_text(key, number) for key in keys for number in range(EXPRESSIONS)]
        schema = pa.schema([pa.field("text", pa.string()), ragged_field("word_features", width)])
        for bucket, mine in enumerate(self._in_buckets(texts)):
            lengths = rng.integers(FEWEST_WORDS, MOST_WORDS + 1, len(mine))
            numbers = rng.standard_normal((lengths.sum(), width), np.float32).astype(np.float16)
            columns = [pa.array(mine, pa.string()), to_ragged(numbers, lengths.tolist())]
            table = pa.Table.from_arrays(columns, schema=schema)
            node.write_bucket(bucket, BucketOutput({DATA: table}))
        node.write_manifest()
        return node

    def _labels(self, keys: list[str], low_res_size: int, image_size: int) -> Node:
        """Write labels and targets: the candidates of a few expressions, again and again."""
        node, readable = self._node("labels"), set(keys[: self.num_readable])
        few = _few_candidates()
        offsets = np.append(0, few["candidates"].combine_chunks().value_lengths().to_numpy())
        offsets = offsets.cumsum()
        targets = target_table(few, low_res_size, image_size)
        for bucket, mine in enumerate(self._in_buckets(keys)):
            rows = len(mine) * EXPRESSIONS
            which = np.arange(rows) % len(few)
            alone = len(readable) < len(keys)
            source = [
                "h_sem" if (key in readable if alone else number % 2) else "h_ref"
                for key in mine
                for number in range(EXPRESSIONS)
            ]
            texts = [_text(key, number) for key in mine for number in range(EXPRESSIONS)]
            table = pa.Table.from_arrays(
                [
                    pa.array([key for key in mine for _ in range(EXPRESSIONS)], pa.string()),
                    pa.array(texts, pa.string()),  # texts are unique, and so serve as ids
                    pa.array(texts, pa.string()),
                    pa.array(source, pa.string()),
                    pa.array([HEIGHT] * rows, pa.int32()),
                    pa.array([WIDTH] * rows, pa.int32()),
                    few["candidates"].combine_chunks().take(pa.array(which)),
                ],
                schema=LABELS,
            )
            again = [np.arange(offsets[i], offsets[i + 1]) for i in which]
            candidates = np.concatenate([np.zeros(0, int), *again])
            arrays = [from_tensors(column)[candidates] for column in targets.columns]
            columns = [to_tensors(array) for array in arrays]
            repeated = pa.Table.from_arrays(columns, schema=targets.schema)
            node.write_bucket(bucket, BucketOutput({DATA: table, TARGETS: repeated}))
        node.write_manifest()
        return node


def _text(key: str, number: int) -> str:
    return f"expression {number} of {key}"


def _few_candidates() -> pa.Table:
    """Return the labels of two pictures, whose masks are ellipses."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rows = []
    for number in range(2 * EXPRESSIONS):
        candidates = []
        for i in range(CANDIDATES[number % len(CANDIDATES)]):
            centre, radii = rng.uniform(0.2, 0.8, 2), rng.uniform(0.06, 0.25, 2)
            ellipse = ((y / HEIGHT - centre[0]) / radii[0]) ** 2
            ellipse = ellipse + ((x / WIDTH - centre[1]) / radii[1]) ** 2
            candidates.append(
                {
                    "phrase": "dog",
                    "mask": encode_rle(ellipse < 1),
                    "is_referent": float(i == 0),
                    "points": centre[::-1].tolist(),
                    "point_labels": [1],
                    "predicted_iou": 0.9,
                }
            )
        text = str(number)
        row = {"picture": "", "expression_id": text, "text": text, "source": "h_sem"}
        rows.append({**row, "height": HEIGHT, "width": WIDTH, "candidates": candidates})
    return pa.Table.from_pylist(rows, LABELS)

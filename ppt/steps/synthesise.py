"""synthesise: make D_ref from the pictures of D_sem and their pseudo masks (Section 3.2).

Samples and labels are made together, because the layout of a picture determines its label. A bucket
uses the D_sem pictures of the bucket with its own number and, if these are few, of the next
buckets. At any size, a bucket therefore reads only a part of D_sem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ppt.batches.targets import target_table
from ppt.config import SamConfig, Synthesis
from ppt.images.masks import decode_rle, encode_rle
from ppt.images.pictures import check_picture, encode_picture
from ppt.models.loaded import current_device, sam_fingerprint, segmenter
from ppt.steps.label import num_by_source
from ppt.steps.step import Step
from ppt.store.nodes import DATA, TARGETS, BucketOutput, Count, Node, bucket_of, digest_of
from ppt.store.nodes import LABELS as LABEL_TABLE
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import LABELS, QUARANTINE, SAMPLES
from ppt.synthesis.layouts import (
    ObjectPicture,
    SynthesisedPicture,
    draw_recipes,
    is_usable,
    synthesise,
)

MIN_POOL = 64
"""A bucket chooses among at least this many pictures, if there are so many (our choice)."""


@dataclass(frozen=True)
class Synthesise(Step):
    """The samples of D_ref (table `data`) and their labels (table `labels`) in one node."""

    kind = "d_ref"
    command = "synthesise"
    version = 2
    title = "synthesise d_ref"

    samples: Node  # D_sem
    labels: Node
    sam: SamConfig  # the targets lie in its frame
    synthesis: Synthesis

    @property
    def buckets(self) -> int:
        return self.samples.num_buckets

    def spec(self) -> dict[str, Any]:
        return {**self.synthesis.model_dump(), "sam": sam_fingerprint(self.sam)}

    def parents(self) -> dict[str, Node]:
        return {"samples": self.samples, "labels": self.labels}

    def total(self) -> int:
        return self.synthesis.num_pictures

    def __call__(self, bucket: int) -> BucketOutput:
        keys = [
            key
            for key in (f"d_ref/{i:07d}" for i in range(self.synthesis.num_pictures))
            if bucket_of(key, self.samples.num_buckets) == bucket
        ]
        samples, labels, rejected = [], [], []
        if keys:
            pool = self._pool(bucket)
            recipes = draw_recipes(
                [picture.class_name for picture in pool],
                self.synthesis.model_copy(update={"num_pictures": len(keys)}),
                int(digest_of([self.synthesis.seed, bucket])[:8], 16),
            )
            for key, recipe in zip(keys, recipes, strict=True):
                parts = [pool[i] for i in recipe.pictures]
                made = synthesise(recipe, parts, self.synthesis.size)
                if made.expressions:
                    sample, of_sample = _rows(key, made)
                    samples.append(sample)
                    labels += of_sample
                else:
                    rejected.append(_rejected(key, recipe.kind))
        label_table = pa.Table.from_pylist(labels, LABELS)
        sam = segmenter(self.sam, current_device())
        return BucketOutput(
            {
                DATA: pa.Table.from_pylist(samples, SAMPLES),
                LABEL_TABLE: label_table,
                TARGETS: target_table(label_table, sam.low_res_size, sam.image_size),
                REJECTED: pa.Table.from_pylist(rejected, QUARANTINE),
            },
            {
                "pictures": Count(len(keys), len(samples), len(rejected)),
                "expressions": Count(len(labels), len(labels), 0),
            },
            num_by_source(labels),
        )

    def _pool(self, bucket: int) -> list[ObjectPicture]:
        """Return the usable pictures of D_sem among which a bucket chooses."""
        pool: list[ObjectPicture] = []
        for offset in range(self.samples.num_buckets):
            near = (bucket + offset) % self.samples.num_buckets
            masks = {
                row["picture"]: row["candidates"][0]["mask"]
                for row in self.labels.read(near, columns=["picture", "candidates"]).to_pylist()
            }
            for row in self.samples.read(near).to_pylist():
                if row["picture"] not in masks:
                    continue
                mask = decode_rle(masks[row["picture"]], row["height"], row["width"])
                if is_usable(mask):
                    image = check_picture(row["image"])
                    pool.append(ObjectPicture(image, mask, row["class_name"]))
            if len(pool) >= MIN_POOL:
                break
        return pool


def _rejected(key: str, kind: str) -> dict[str, Any]:
    reason = f"no text of this {kind} tells its objects apart"
    return {"picture": key, "expression_id": None, "num_expressions": 0, "reason": reason}


def _rows(key: str, made: SynthesisedPicture) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    height, width = made.image.shape[:2]
    ids = [f"{key}/{i}" for i in range(len(made.expressions))]
    sample = {
        "picture": key,
        "image": encode_picture(made.image),
        "height": height,
        "width": width,
        "class_name": None,
        "expressions": [
            {"expression_id": i, "text": e.text} for i, e in zip(ids, made.expressions, strict=True)
        ],
    }
    counts = [encode_rle(mask) for mask in made.masks]
    labels = []
    for expression_id, expression in zip(ids, made.expressions, strict=True):
        candidates = [
            {
                "phrase": made.class_names[i],
                "mask": counts[i],
                # Section 3.2: the score is 1 for the referent and 0 for the context objects.
                "is_referent": float(i == expression.target),
                "points": [],
                "point_labels": [],
                "predicted_iou": 1.0,
            }
            for i in (expression.target, *expression.context)
        ]
        labels.append(
            {
                "picture": key,
                "expression_id": expression_id,
                "text": expression.text,
                "source": "d_ref",
                "height": height,
                "width": width,
                "candidates": candidates,
            }
        )
    return sample, labels

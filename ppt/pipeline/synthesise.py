"""synthesise: D_ref, made of D_sem's pictures and their pseudo masks (Section 3.2).

Samples and labels are made together, since how a picture was put together is its label. A bucket
draws on the D_sem pictures of its own number and, where these are few, of the next ones: no
picture travels further than it must, at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ppt.config import Synthesis
from ppt.data.pictures import check_picture, encode_picture
from ppt.data.synthesis import (
    ObjectPicture,
    SynthesisedPicture,
    draw_recipes,
    is_usable,
    synthesise,
)
from ppt.masks import decode_rle, encode_rle
from ppt.pipeline.passes import Pool
from ppt.schema import LABELS, QUARANTINE, SAMPLES
from ppt.store import DATA, BucketOutput, Count, Node, Store, bucket_of, digest_of
from ppt.store import LABELS as LABEL_TABLE
from ppt.store import QUARANTINE as REJECTED

MIN_POOL = 64
"""Pictures that a bucket chooses from, if there are that many (our choice)."""


@dataclass(frozen=True)
class _SynthesiseBucket:
    samples: Node  # D_sem
    labels: Node
    synthesis: Synthesis
    seed: int

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
                int(digest_of([self.seed, bucket])[:8], 16),
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
        return BucketOutput(
            {
                DATA: pa.Table.from_pylist(samples, SAMPLES),
                LABEL_TABLE: pa.Table.from_pylist(labels, LABELS),
                REJECTED: pa.Table.from_pylist(rejected, QUARANTINE),
            },
            {
                "pictures": Count(len(keys), len(samples), len(rejected)),
                "expressions": Count(len(labels), len(labels), 0),
            },
        )

    def _pool(self, bucket: int) -> list[ObjectPicture]:
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
                # Section 3.2: one for the referent, zero for the context objects.
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


def synthesise_d_ref(
    store: Store, pool: Pool, samples: Node, labels: Node, *, synthesis: Synthesis, seed: int
) -> Node:
    """D_ref's samples (table `data`) and labels (table `labels`) in one node."""
    spec = {**synthesis.model_dump(), "seed": seed}
    parents = {"samples": samples, "labels": labels}
    node = store.node("d_ref", spec, parents, buckets=samples.num_buckets)
    process = _SynthesiseBucket(samples, labels, synthesis, seed)
    return pool.run(node, process, title="synthesise d_ref", total=synthesis.num_pictures)

"""Referents without Select: the candidate that the whole expression's own mask overlaps most.

A pass of its own over round 0 of H's labels, which curricula with and without Select share.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ppt.config import Model, PointRecipe
from ppt.labels.select import most_overlapped
from ppt.masks import decode_rle
from ppt.pipeline.features import encoder_spec
from ppt.pipeline.label import Phrase, prompt_phrases
from ppt.pipeline.passes import Pool
from ppt.schema import LABELS, QUARANTINE
from ppt.store import DATA, BucketOutput, Count, Node, Store
from ppt.store import QUARANTINE as REJECTED


@dataclass(frozen=True)
class _WholeExpressionBucket:
    labels: Node
    features: Node
    embeddings: Node
    model: Model
    recipe: PointRecipe

    def __call__(self, bucket: int) -> BucketOutput:
        rows = self.labels.read(bucket).to_pylist()
        several = [row for row in rows if len(row["candidates"]) > 1]
        found = prompt_phrases(
            [Phrase(row["picture"], row["expression_id"], row["text"]) for row in several],
            self.recipe,
            features=self.features,
            embeddings=self.embeddings,
            bucket=bucket,
            model=self.model,
        )
        for row, whole in zip(several, found, strict=True):
            size = row["height"], row["width"]
            masks = [decode_rle(candidate["mask"], *size) for candidate in row["candidates"]]
            referent = most_overlapped(masks, whole[0].mask) if whole else None
            for i, candidate in enumerate(row["candidates"]):
                candidate["is_referent"] = float(i == referent)
        return BucketOutput(
            {DATA: pa.Table.from_pylist(rows, LABELS), REJECTED: QUARANTINE.empty_table()},
            {"expressions": Count(len(rows), len(rows), 0)},
        )


def refer_by_whole_expression(
    store: Store,
    pool: Pool,
    labels: Node,
    features: Node,
    embeddings: Node,
    *,
    model: Model,
    recipe: PointRecipe,
) -> Node:
    """`labels` with a referent for expressions of several candidates (our choice, see `Labels`).

    One whose own mask is empty or overlaps no candidate keeps its scores of 0. `embeddings` are
    the `phrases` of all its expressions and the empty one.
    """
    spec = {**encoder_spec(model), "recipe": recipe.model_dump(), "unselected": "whole_expression"}
    parents = {"labels": labels, "features": features}
    node = store.node("labels", spec, parents, buckets=labels.num_buckets)
    process = _WholeExpressionBucket(labels, features, embeddings, model, recipe)
    total = labels.counts()["expressions"]["out"]
    return pool.run(node, process, title="referents without Select", total=total)

"""Referents without Select: the candidate that the mask of the whole expression overlaps most.

This is a step of its own after round 0 of H's labels, so that curricula with and without Select
share that round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ppt.config import Model, PointRecipe
from ppt.images.masks import decode_rle
from ppt.labels.referent import most_overlapped
from ppt.models.loaded import encoder_fingerprints
from ppt.steps.label import Phrase, num_by_source, prompt_phrases, recipe_spec
from ppt.steps.step import Step
from ppt.store.lookup import text_encoding
from ppt.store.nodes import DATA, TARGETS, BucketOutput, Count, Node
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import LABELS, QUARANTINE


@dataclass(frozen=True)
class ReferByWholeExpression(Step):
    """The labels of H, in which expressions with several candidates have a referent without Select.

    An expression whose own mask is empty or overlaps no candidate keeps its scores of 0. `phrases`
    holds the embeddings of all expressions and of the empty text.
    """

    kind = "labels"
    command = "label"
    version = 2
    title = "referents without Select"

    labels: Node
    features: Node
    phrases: Node
    model: Model
    recipe: PointRecipe

    @property
    def buckets(self) -> int:
        return self.labels.num_buckets

    def spec(self) -> dict[str, Any]:
        return {
            **encoder_fingerprints(self.model),
            "phrases": text_encoding(self.phrases),
            "recipe": recipe_spec(self.recipe),
            "unselected": "whole_expression",
        }

    def parents(self) -> dict[str, Node]:
        return {"labels": self.labels, "features": self.features}

    def total(self) -> int:
        return self.labels.counts()["expressions"]["out"]

    def __call__(self, bucket: int) -> BucketOutput:
        rows = self.labels.read(bucket).to_pylist()
        several = [row for row in rows if len(row["candidates"]) > 1]
        found = prompt_phrases(
            [Phrase(row["picture"], row["expression_id"], row["text"]) for row in several],
            self.recipe,
            features=self.features,
            embeddings=self.phrases,
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
            {
                DATA: pa.Table.from_pylist(rows, LABELS),
                TARGETS: self.labels.read(bucket, TARGETS),
                REJECTED: QUARANTINE.empty_table(),
            },
            {"expressions": Count(len(rows), len(rows), 0)},
            num_by_source(rows),
        )

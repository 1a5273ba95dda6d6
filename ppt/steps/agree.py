"""The agreement of a checkpoint's masks with the pseudo labels of the validation split.

`model_selection: pseudo_iou` chooses the model of a run by this agreement, which needs no ground
truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ppt.batches.sampler import LabelTable
from ppt.config import Model
from ppt.evaluation.metrics import overlap
from ppt.images.masks import decode_rle, encode_rle
from ppt.steps.inference import predict_expressions, trained
from ppt.steps.step import Step
from ppt.store.lookup import text_encoding
from ppt.store.nodes import DATA, BucketOutput, Count, Node
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import QUARANTINE, RESULTS


@dataclass(frozen=True)
class AgreeWithLabels(Step):
    """The `results` of a checkpoint, with pseudo labels in place of the ground truth.

    Candidates are never empty, so no union is empty either.
    """

    kind = "results"
    version = 2  # the surest point first
    command = "evaluate"

    labels: LabelTable
    checkpoint: Node
    model: Model
    name: str  # the name of what is compared, for display

    @property
    def title(self) -> str:
        return f"compare {self.name} with labels"

    @property
    def buckets(self) -> int:
        return self.labels.labels.num_buckets

    def spec(self) -> dict[str, Any]:
        return {"against": "labels", "words": text_encoding(self.labels.words)}

    def parents(self) -> dict[str, Node]:
        return {
            "labels": self.labels.labels,
            "features": self.labels.features,
            "checkpoint": self.checkpoint,
        }

    def total(self) -> int:
        return self.labels.labels.counts()["expressions"]["out"]

    def __call__(self, bucket: int) -> BucketOutput:
        rows = self.labels.labels.read(bucket).to_pylist()
        predictions = predict_expressions(
            trained(self.checkpoint, self.model),
            rows,
            features=self.labels.features,
            words=self.labels.words,
            bucket=bucket,
        )
        results = []
        for row, found in zip(rows, predictions, strict=True):
            size = row["height"], row["width"]
            candidates = [decode_rle(c["mask"], *size) for c in row["candidates"]]
            # Of several candidates the one that fits best counts, because the labels do not say
            # yet which one is the referent.
            overlaps = [overlap(found.mask, candidate) for candidate in candidates]
            intersection, union = max(overlaps, key=lambda pair: pair[0] / pair[1])
            results.append(
                {
                    "picture": row["picture"],
                    "expression_id": row["expression_id"],
                    "text": row["text"],
                    "kind": None,
                    "intersection": intersection,
                    "union": union,
                    "iou": intersection / union,
                    "mask": encode_rle(found.mask),
                    "points": found.points.flatten().tolist(),
                    "point_labels": found.point_labels.tolist(),
                    "score": found.score,
                }
            )
        return BucketOutput(
            {DATA: pa.Table.from_pylist(results, RESULTS), REJECTED: QUARANTINE.empty_table()},
            {"expressions": Count(len(rows), len(results), 0)},
        )

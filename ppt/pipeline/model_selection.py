"""Which stage's checkpoint is the model of a run, chosen on the validation split or not at all.

The paper says nothing, so the last is the default (our choice). `pseudo_iou` asks how well a
stage's masks agree with the validation split's own pseudo labels: nobody's mask is looked at.
`truth` does look, and whoever reads the figures is told so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ppt.config import ConfigError, Model, ModelSelection
from ppt.masks import decode_rle, encode_rle
from ppt.metrics import overlap
from ppt.pipeline.inference import predict_expressions, trained
from ppt.pipeline.mixture import LabelTable
from ppt.pipeline.passes import Pool
from ppt.pipeline.record import Chosen
from ppt.schema import QUARANTINE, RESULTS
from ppt.store import DATA, BucketOutput, Count, Node, Store
from ppt.store import QUARANTINE as REJECTED


def choose_stage(
    by: ModelSelection, stages: Sequence[str], scores: Mapping[str, float] | None = None
) -> Chosen:
    """The stage with the highest score, of equal ones the later; without scores the last.

    Raises ConfigError where nothing could be scored.
    """
    if not scores:
        return Chosen(stages[-1], by)
    if any(math.isnan(score) for score in scores.values()):
        raise ConfigError(
            f"model_selection: by {by!r} nothing of the validation split could be scored: give "
            "data.validation sentences to choose by, or model_selection=last"
        )
    best = max(range(len(stages)), key=lambda i: (scores[stages[i]], i))
    return Chosen(stages[best], by, dict(scores))


@dataclass(frozen=True)
class _AgreeWithLabels:
    labels: LabelTable
    checkpoint: Node
    model: Model

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
            # Several candidates: the one that fits best, for which of them is the referent is
            # nothing that a label knows before Select, and Select asks this same model (our
            # choice).
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


def agreement(
    store: Store, pool: Pool, labels: LabelTable, checkpoint: Node, model: Model, *, name: str
) -> Node:
    """Results of a checkpoint against pseudo labels in the place of a truth.

    Candidates are never empty, so no union is.
    """
    parents = {"labels": labels.labels, "features": labels.features, "checkpoint": checkpoint}
    spec = {"against": "labels"}
    node = store.node("results", spec, parents, buckets=labels.labels.num_buckets)
    total = labels.labels.counts()["expressions"]["out"]
    process = _AgreeWithLabels(labels, checkpoint, model)
    return pool.run(node, process, title=f"compare {name} with labels", total=total)

"""The quality of the pseudo labels of training pictures, measured against their ground truth.

The tables serve the diagnosis of finished runs only: nothing that trains a model or chooses one
reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ppt.images.masks import decode_rle, iou
from ppt.steps.step import Step
from ppt.store.nodes import DATA, BucketOutput, Count, Node
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import LABEL_QUALITY, QUARANTINE, sentence_key


@dataclass(frozen=True)
class LabelQuality:
    """The quality of one source's labels after a round; IoU and precision are in percent."""

    source: str
    num: int  # labels that have a referent
    mean_iou: float  # of the candidates that are the referents
    precision: float  # share of these candidates with an IoU of at least 0.5
    best_iou: float  # mean IoU of the best candidate of each label


@dataclass(frozen=True)
class MeasureLabels(Step):
    """The IoU of each pseudo label of H or D_sem with the ground truth of its picture."""

    kind = "label_quality"
    command = "evaluate"
    title = "measure labels"

    labels: Node
    ground_truth: Node

    @property
    def buckets(self) -> int:
        return self.labels.num_buckets

    def spec(self) -> dict[str, Any]:
        return {}

    def parents(self) -> dict[str, Node]:
        return {"labels": self.labels, "ground_truth": self.ground_truth}

    def total(self) -> int:
        return self.labels.counts()["expressions"]["out"]

    def __call__(self, bucket: int) -> BucketOutput:
        truths = {sentence_key(row): row for row in self.ground_truth.read(bucket).to_pylist()}
        rows, rejected = [], []
        for label in self.labels.read(bucket).to_pylist():
            truth = truths.get(sentence_key(label))
            if truth is None:
                rejected.append(_without_truth(label))
                continue
            size = truth["height"], truth["width"]
            target = decode_rle(truth["mask"], *size)
            ious = [iou(decode_rle(c["mask"], *size), target) for c in label["candidates"]]
            chosen = [i for i, c in enumerate(label["candidates"]) if c["is_referent"] == 1]
            rows.append(
                {
                    **{key: label[key] for key in ("picture", "expression_id", "source")},
                    "kind": truth["kind"],
                    "num_candidates": len(ious),
                    "iou": ious[chosen[0]] if chosen else None,
                    "best_iou": max(ious),
                }
            )
        return BucketOutput(
            {
                DATA: pa.Table.from_pylist(rows, LABEL_QUALITY),
                REJECTED: pa.Table.from_pylist(rejected, QUARANTINE),
            },
            {"expressions": Count(len(rows) + len(rejected), len(rows), len(rejected))},
        )


def _without_truth(label: dict) -> dict[str, Any]:
    return {
        "picture": label["picture"],
        "expression_id": label["expression_id"],
        "num_expressions": 1,
        "reason": "its ground truth was quarantined",
    }


def quality_by_source(measured: Node) -> list[LabelQuality]:
    """Return the means of a measured table by source.

    Labels without a referent are left out, and so are sources without labels.
    """
    rows = measured.read_all().to_pylist()
    found = []
    for source in ("d_sem", "h_sem", "h_ref"):
        mine = [row for row in rows if row["source"] == source and row["iou"] is not None]
        if not mine:
            continue
        found.append(
            LabelQuality(
                source,
                len(mine),
                _percent([row["iou"] for row in mine]),
                _percent([row["iou"] >= 0.5 for row in mine]),
                _percent([row["best_iou"] for row in mine]),
            )
        )
    return found


def _percent(values: list[Any]) -> float:
    return 100 * sum(values) / len(values) if values else float("nan")

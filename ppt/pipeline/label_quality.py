"""How good the pseudo labels of training pictures are, measured against their ground truth.

For the diagnosis of a finished run only: nothing that trains or chooses reads these tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ppt.masks import decode_rle, iou
from ppt.pipeline.passes import Pool
from ppt.schema import LABEL_QUALITY, QUARANTINE, sentence_key
from ppt.store import DATA, BucketOutput, Count, Node, Store
from ppt.store import QUARANTINE as REJECTED


@dataclass(frozen=True)
class LabelQuality:
    """The labels of one source after a round, in percent; NaN where there are none."""

    source: str
    num: int
    mean_iou: float  # of what is chosen as the referent
    precision: float  # share of them with IoU >= 0.5
    best_iou: float  # mean IoU that the best choice among the candidates would have


@dataclass(frozen=True)
class _MeasureBucket:
    labels: Node
    ground_truth: Node

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


def measure_labels(store: Store, pool: Pool, labels: Node, ground_truth: Node) -> Node:
    """The `LABEL_QUALITY` of the labels of H or of D_sem, bucket by bucket."""
    parents = {"labels": labels, "ground_truth": ground_truth}
    node = store.node("label_quality", {}, parents, buckets=labels.num_buckets)
    process = _MeasureBucket(labels, ground_truth)
    total = labels.counts()["expressions"]["out"]
    return pool.run(node, process, title="measure labels", total=total)


def quality_by_source(measured: Node) -> list[LabelQuality]:
    """The means of a measured table by source; of H_ref what has a referent."""
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

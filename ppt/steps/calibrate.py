"""calibrate: the evidence on pseudo labels from which a trained stage's scores are made.

A score is the probability that a mask is right. It is fitted on the validation pictures: on the
sentences with a single candidate, whose mask counts as right if it agrees with the candidate, and
on sentences of other pictures, whose masks all count as wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ppt.config import Model
from ppt.evaluation.metrics import overlap
from ppt.evaluation.outcomes import FOUND
from ppt.images.masks import decode_rle
from ppt.models.confidence import EVIDENCE as FIGURES
from ppt.models.confidence import Calibration, fit_calibration
from ppt.steps.inference import predict_expressions, trained
from ppt.steps.step import Step
from ppt.store.lookup import text_encoding
from ppt.store.nodes import DATA, BucketOutput, Count, Node
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import EVIDENCE, QUARANTINE

MISMATCHED_WEIGHT = 0.1
"""The weight of all sentences of other pictures, where that of all others is 1 (our choice)."""


@dataclass(frozen=True)
class GatherEvidence(Step):
    """The `evidence` of a checkpoint on a split's pseudo labels and on sentences of other pictures.

    Each picture gets one sentence of the next picture of its bucket. Without `labels` there are
    only such sentences.
    """

    kind = "evidence"
    command = "evaluate"

    samples: Node
    features: Node
    words: Node
    phrases: Node  # the embeddings of the whole expressions
    labels: Node | None
    checkpoint: Node
    model: Model
    name: str  # the name of the checkpoint and the split, for display

    @property
    def title(self) -> str:
        return f"evidence {self.name}"

    @property
    def buckets(self) -> int:
        return self.samples.num_buckets

    def spec(self) -> dict[str, Any]:
        return {
            "words": text_encoding(self.words),
            "phrases": text_encoding(self.phrases),
            "labelled": self.labels is not None,
        }

    def parents(self) -> dict[str, Node]:
        labels = {} if self.labels is None else {"labels": self.labels}
        return {
            "samples": self.samples,
            "features": self.features,
            "checkpoint": self.checkpoint,
            **labels,
        }

    def __call__(self, bucket: int) -> BucketOutput:
        rows = [*self._labelled(bucket), *self._mismatched(bucket)]
        return BucketOutput(
            {DATA: pa.Table.from_pylist(rows, EVIDENCE), REJECTED: QUARANTINE.empty_table()},
            {"expressions": Count(len(rows), len(rows), 0)},
        )

    def _labelled(self, bucket: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of the bucket's sentences with a single candidate."""
        if self.labels is None:
            return
        rows = [r for r in self.labels.read(bucket).to_pylist() if len(r["candidates"]) == 1]
        for row, found in zip(rows, self._predict(rows, bucket), strict=True):
            candidate = decode_rle(row["candidates"][0]["mask"], row["height"], row["width"])
            intersection, union = overlap(found.mask, candidate)
            yield _row(row, found.evidence, matched=True, right=intersection >= FOUND * union)

    def _mismatched(self, bucket: int) -> Iterator[dict[str, Any]]:
        """Yield a row for each picture of the bucket with a sentence of the next picture."""
        columns = ["picture", "expressions"]
        pictures = self.samples.read(bucket, columns=columns).to_pylist()
        rows = [
            {"picture": picture["picture"], **other["expressions"][0]}
            for picture, other in zip(pictures, pictures[1:] + pictures[:1], strict=True)
            if picture is not other
        ]
        for row, found in zip(rows, self._predict(rows, bucket), strict=True):
            yield _row(row, found.evidence, matched=False, right=False)

    def _predict(self, rows: list[dict[str, Any]], bucket: int) -> Iterator[Any]:
        return predict_expressions(
            trained(self.checkpoint, self.model),
            rows,
            features=self.features,
            words=self.words,
            phrases=self.phrases,
            bucket=bucket,
        )


def _row(
    expression: dict[str, Any], evidence: np.ndarray, *, matched: bool, right: bool
) -> dict[str, Any]:
    return {
        "picture": expression["picture"],
        "expression_id": expression["expression_id"],
        "text": expression["text"],
        "matched": matched,
        "right": right,
        "evidence": evidence.tolist(),
    }


@functools.lru_cache(maxsize=8)
def calibration_of(evidence: Node) -> Calibration:
    """Return the calibration that fits a table of evidence."""
    rows = evidence.read_all(columns=["matched", "right", "evidence"])
    matched = rows["matched"].to_numpy()
    weight = np.where(matched, 1, MISMATCHED_WEIGHT * matched.sum() / max((~matched).sum(), 1))
    return fit_calibration(_figures(rows), rows["right"].to_numpy(), weight)


def mismatched_scores(evidence: Node, calibration: Calibration) -> np.ndarray:
    """Return the scores of the sentences of other pictures in a table of evidence."""
    rows = evidence.read_all(columns=["matched", "evidence"])
    return calibration.probability(_figures(rows)[~rows["matched"].to_numpy()])


def _figures(rows: pa.Table) -> np.ndarray:
    """Return the evidence of rows, [N, 3]."""
    return np.array(rows["evidence"].to_pylist(), np.float64).reshape(-1, len(FIGURES))

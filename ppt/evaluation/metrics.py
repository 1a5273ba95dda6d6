"""Metrics of referring segmentation, computed from the pixel counts of a set of sentences.

A metric is a function from `Overlaps` to a percentage. A new metric is a function and an entry in
`METRICS`. Its value must not depend on the order of the sentences. A sentence whose union is empty
counts with an IoU of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np


@dataclass(frozen=True)
class Overlaps:
    """The pixel counts of some sentences, in any order."""

    intersection: np.ndarray  # int64 [sentences], the pixels in both prediction and ground truth
    union: np.ndarray  # int64 [sentences], the pixels in at least one of them

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Overlaps:
        """Collect the counts (intersection, union) of the sentences.

        Raises:
            ValueError: unless 0 <= intersection <= union for every sentence.
        """
        counts = np.array(list(pairs), np.int64).reshape(-1, 2)
        for intersection, union in counts[(counts[:, 0] < 0) | (counts[:, 0] > counts[:, 1])]:
            raise ValueError(f"intersection {intersection} and union {union} are no overlap")
        return cls(counts[:, 0], counts[:, 1])

    def __len__(self) -> int:
        return len(self.union)

    @cached_property
    def iou(self) -> np.ndarray:
        """The IoU of each sentence, float64 [sentences] in [0, 1]."""
        empty = np.zeros(len(self))
        return np.divide(self.intersection, self.union, out=empty, where=self.union > 0)


def mean_iou(overlaps: Overlaps) -> float:
    """Return the mean IoU over the sentences in percent.

    The sum by `fsum` is exact, so it does not depend on the order.
    """
    return 100 * (math.fsum(overlaps.iou) / len(overlaps))


def overall_iou(overlaps: Overlaps) -> float:
    """Return the sum of all intersections divided by the sum of all unions, in percent."""
    union = int(overlaps.union.sum())
    return 100 * int(overlaps.intersection.sum()) / union if union else 0.0


def precision(overlaps: Overlaps, tenths: int) -> float:
    """Return the percentage of sentences whose IoU is at least `tenths` / 10."""
    reached = (overlaps.union > 0) & (10 * overlaps.intersection >= tenths * overlaps.union)
    return 100 * np.count_nonzero(reached) / len(overlaps)


TENTHS = (3, 5, 6, 7, 8, 9)
"""The thresholds of P@X in tenths. The paper reports .3, .5 and .7; other work reports .5 to .9."""

METRICS: dict[str, Callable[[Overlaps], float]] = {
    "mIoU": mean_iou,
    "oIoU": overall_iou,
    **{f"P@0.{tenths}": partial(precision, tenths=tenths) for tenths in TENTHS},
}
"""The metrics by the names that they have in tables, files and MLflow."""


def measure(overlaps: Overlaps) -> dict[str, float]:
    """Return all metrics in percent by name. They are NaN if there is no sentence."""
    if not len(overlaps):
        return dict.fromkeys(METRICS, math.nan)
    return {name: metric(overlaps) for name, metric in METRICS.items()}


def overlap(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Return the numbers of pixels in the intersection and in the union of two bool masks.

    Raises:
        ValueError: if the masks have different sizes.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"masks of different sizes: {prediction.shape} and {target.shape}")
    return int(np.count_nonzero(prediction & target)), int(np.count_nonzero(prediction | target))

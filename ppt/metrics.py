"""mIoU, oIoU and P@X as exact sums.

Sums are whole numbers, so adding sentences one by one, in any order, or merging the sums of many
workers gives the same bits. mIoU is the mean over sentences, oIoU total intersection over total
union. A sentence whose union is empty counts as IoU 0 and stays in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

TENTHS = (3, 5, 6, 7, 8, 9)
"""Thresholds of P@X in tenths: the paper prints .3, .5, .7; others .5 to .9."""

_BITS = 60  # an IoU is summed in units of 2^-60


@dataclass
class RunningMetrics:
    """Sums over sentences. `as_dict` gives percentages; no sentence at all gives NaN."""

    num: int = 0
    intersection: int = 0
    union: int = 0
    iou_sum: int = 0  # in units of 2^-60
    hits: dict[int, int] = field(default_factory=lambda: dict.fromkeys(TENTHS, 0))

    def update(self, intersection: int, union: int) -> float:
        """Add one sentence by its pixel counts; returns its IoU."""
        intersection, union = int(intersection), int(union)
        if not 0 <= intersection <= union:
            raise ValueError(f"intersection {intersection} and union {union} are no overlap")
        self.num += 1
        self.intersection += intersection
        self.union += union
        self.iou_sum += (intersection << _BITS) // union if union else 0
        for tenth in TENTHS:
            self.hits[tenth] += bool(union) and 10 * intersection >= tenth * union
        return intersection / union if union else 0.0

    def merge(self, other: RunningMetrics) -> None:
        """Add another worker's sums."""
        self.num += other.num
        self.intersection += other.intersection
        self.union += other.union
        self.iou_sum += other.iou_sum
        for tenth in TENTHS:
            self.hits[tenth] += other.hits[tenth]

    def as_dict(self) -> dict[str, float]:
        """Percentages by the names `mIoU`, `oIoU`, `P@0.3` ..."""
        nan = float("nan")
        mean = self.iou_sum / (self.num << _BITS) if self.num else nan
        overall = self.intersection / self.union if self.union else (0.0 if self.num else nan)
        precision = {f"P@0.{t}": 100 * self.hits[t] / self.num if self.num else nan for t in TENTHS}
        return {"mIoU": 100 * mean, "oIoU": 100 * overall, **precision}


def overlap(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Pixels in both and pixels in either of two bool masks of one size."""
    if prediction.shape != target.shape:
        raise ValueError(f"masks of different sizes: {prediction.shape} and {target.shape}")
    return int(np.count_nonzero(prediction & target)), int(np.count_nonzero(prediction | target))

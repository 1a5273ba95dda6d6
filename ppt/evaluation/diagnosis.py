"""The quality of the points, the attention and the scores of a trained model.

The figures serve the diagnosis of finished runs: nothing that trains a model or chooses one reads
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ppt.evaluation.outcomes import CHANGE, FOUND

DIAGNOSED = ("iou", "iou_without", "point_labels", "points_on", "peak_on", "score")
"""The columns of a results table that `diagnose` reads."""

_BINS = 10  # of the calibration error, of equal width


def diagnose(results: pa.Table, mismatched: np.ndarray) -> dict[str, float]:
    """Return the figures by name, in percent.

    `positives on` and `negatives off` are the shares of the positive points that lie on the
    referent and of the negative points that lie off it, of all prompts whose referent is found.
    `mIoU without negatives` is that of the same prompts without their negative points. `surest on`
    is the share of all sentences whose surest positive point lies on the referent, and `peak on`
    the share in which the highest cell of the attention of the chosen query does. `score ROC` is
    the area under the curve by which the score tells found sentences from missed ones, 50 for a
    score that tells nothing. `score error` is the expected calibration error: the mean over the
    sentences of the distance between the mean score and the share found among the sentences with a
    score in the same tenth. `mismatch ROC` is the area by which the score tells the sentences from
    sentences of other pictures.

    Args:
        results: the columns `DIAGNOSED` of a trained model's results.
        mismatched: the scores of sentences of other pictures, [N].

    Returns:
        The figures; one is NaN if there is nothing to compute it from.
    """
    iou, score = results["iou"].to_numpy(), results["score"].to_numpy().astype(np.float64)
    found = iou >= FOUND
    counts = [len(labels) for labels in results["point_labels"].to_pylist()]
    of_found = np.repeat(found, counts)
    labels = np.array(results["point_labels"].combine_chunks().flatten())
    on = np.array(results["points_on"].combine_chunks().flatten(), bool)
    matched = np.arange(len(score) + len(mismatched)) < len(score)
    return {
        "positives on": _percent(on[of_found & (labels == 1)]),
        "negatives off": _percent(~on[of_found & (labels == 0)]),
        "mIoU without negatives": _percent(results["iou_without"].to_numpy()),
        "surest on": _percent(np.array([on[0] for on in results["points_on"].to_pylist()], bool)),
        "peak on": _percent(np.array(results["peak_on"], bool)),
        "score ROC": 100 * roc_area(score, found),
        "score error": 100 * calibration_error(score, found),
        "mismatch ROC": 100 * roc_area(np.append(score, mismatched), matched),
    }


COMPARED = ("iou", "iou_without", "point_labels")
"""The columns of a results table that `negative_effect` reads."""


@dataclass(frozen=True)
class NegativeEffect:
    """The effect of the negative points of all prompts, in percent."""

    prompts: float  # share of prompts that have a negative point
    mean_iou: float  # with negative points
    mean_iou_without: float  # without negative points
    better: float  # share of sentences whose IoU is higher with them by at least `CHANGE`
    worse: float  # share of sentences whose IoU is lower with them by at least `CHANGE`

    @property
    def same(self) -> float:
        """The share of sentences whose IoU differs by less than `CHANGE`."""
        return 100 - self.better - self.worse


def negative_effect(results: pa.Table) -> NegativeEffect:
    """Compare prompts with the same prompts without their negative points.

    Args:
        results: the columns `COMPARED` of a trained model's results.

    Returns:
        The shares and means. All of them are NaN if there is no sentence.
    """
    before, after = (results[name].to_numpy() for name in ("iou", "iou_without"))
    prompts = np.array([0 in labels for labels in results["point_labels"].to_pylist()], bool)
    gain = before - after
    return NegativeEffect(*map(_percent, (prompts, before, after, gain >= CHANGE, -gain >= CHANGE)))


def roc_area(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve of a score.

    It is the share of pairs of a positive and a negative item in which the positive one has the
    higher score. A pair of equal scores counts half.

    Args:
        score: float [N].
        positive: bool [N], which items are positive.

    Returns:
        A number from 0 to 1, or NaN if all items are positive or all are negative.
    """
    from scipy.stats import rankdata  # slow to import, and actors never need it

    positives, others = int(positive.sum()), int((~positive).sum())
    if not positives or not others:
        return math.nan
    ranks = rankdata(score)[positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * others))


def calibration_error(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the expected calibration error of scores, with ten bins of equal width.

    Args:
        score: float [N] in [0, 1], the predicted probability that an item is positive.
        positive: bool [N], which items are positive.

    Returns:
        The error, from 0 to 1; NaN if there is no item.
    """
    if not len(score):
        return math.nan
    bins = np.minimum((score * _BINS).astype(int), _BINS - 1)
    gaps = (abs((score - positive)[bins == number].sum()) for number in range(_BINS))
    return float(sum(gaps) / len(score))


def _percent(shares: np.ndarray) -> float:
    """Return the mean in percent, or NaN if there is none."""
    return 100 * float(np.mean(shares)) if len(shares) else math.nan

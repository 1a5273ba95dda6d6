"""The confidence in a predicted mask: three figures as evidence, and a calibration of them.

The referent score c of Eq. 2 only ranks the queries of one expression. It says little about
whether the mask is right, since the same query tends to have the highest score for every
expression. The score that users see is therefore a probability, made of what the generator, the
segmenter and the image-text encoder know about the mask.

Letters: B expressions, N levels, M points, g x g patches, H4 x W4 the segmenter's logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.special import expit
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

from ppt.models.point_generator import patch_centres

EVIDENCE = ("agreement", "stability", "similarity")
"""The names of the figures, in their order."""

PROPORTIONS = (1.0, 0.5, 1.0)
"""What each figure, divided by its standard deviation, counts in a score (our choice)."""

_STABILITY_OFFSET = 1.0  # as in segment_anything's SamAutomaticMaskGenerator
_REGULARISATION = 1e-3  # of the weight of the scaled sum, and of the bias


def gather_evidence(
    logits: Tensor, valid: Tensor, earlier_points: Tensor, extent: Tensor, similarity: Tensor
) -> Tensor:
    """Return the evidence for the masks of B expressions, [B, 3].

    `agreement` is the share of the points that the chosen query had after the earlier levels which
    lie on the mask; it is 1 if there is no earlier level. `stability` is SAM's stability score: the
    area of the mask at a higher threshold, divided by that at a lower one. `similarity` is CLIP
    Surgery's similarity of the expression and the picture, averaged over the mask. All of them are
    0 for an empty mask.

    Args:
        logits: the logits of the masks, [B, H4, W4], in the padded square.
        valid: where the pictures lie in the padded square, bool [B, H4, W4].
        earlier_points: the points of the chosen queries after the levels before the last one,
            [N - 1, B, M, 2], normalised (x, y).
        extent: the share (x, y) of the padded square that each picture fills, [B, 2].
        similarity: the similarity of the patches, [B, g * g].
    """
    logits = logits.float().masked_fill(~valid, torch.finfo(torch.float32).min)
    mask = (logits > 0).float()
    area = mask.sum((1, 2)).clamp(min=1)
    stability = calculate_stability_score(logits, 0.0, _STABILITY_OFFSET).nan_to_num(0.0)
    agreement = mask.new_ones(len(mask))
    if len(earlier_points):
        points = earlier_points.transpose(0, 1).flatten(1, 2)  # [B, (N - 1) M, 2]
        agreement = sample_masks(mask, points, extent).mean(1)
    side = int(similarity.shape[1] ** 0.5)
    maps = similarity.float().unflatten(1, (side, side))[:, None]
    size = mask.shape[-1]
    pixels = patch_centres(size * size, mask.device).unflatten(0, (size, size))
    centres = pixels / extent[:, None, None]  # [B, H4, W4, 2]
    at_pixel = F.grid_sample(maps, 2 * centres - 1, padding_mode="border", align_corners=False)
    on_mask = (at_pixel[:, 0] * mask).sum((1, 2)) / area
    return torch.stack([agreement, stability, on_mask], 1)


def sample_masks(masks: Tensor, points: Tensor, extent: Tensor) -> Tensor:
    """Return the values of masks at points, [B, P].

    Args:
        masks: [B, H4, W4], float, in the padded square.
        points: [B, P, 2], normalised (x, y) of the original pictures.
        extent: the share (x, y) of the padded square that each picture fills, [B, 2].
    """
    in_square = 2 * points * extent[:, None] - 1
    return F.grid_sample(masks[:, None], in_square[:, None], mode="nearest", align_corners=False)[
        :, 0, 0
    ]


@dataclass(frozen=True)
class Calibration:
    """A logistic regression from evidence to the probability that the mask is right."""

    weights: tuple[float, ...]  # of EVIDENCE
    bias: float

    def probability(self, evidence: np.ndarray) -> np.ndarray:
        """Return the probabilities [N] for evidence [N, 3]."""
        return expit(evidence @ np.array(self.weights) + self.bias)


def fit_calibration(evidence: np.ndarray, right: np.ndarray, weight: np.ndarray) -> Calibration:
    """Fit a calibration whose weights are in `PROPORTIONS`.

    The proportions are fixed because the masks at hand are few, and because whether one counts as
    right is often judged by a pseudo label, which agrees with the similarity more than the truth
    does.

    Args:
        evidence: [N, 3].
        right: bool [N], whether each mask is right.
        weight: [N], how much each mask counts.

    Returns:
        The calibration, in which more evidence never makes a mask less probable. A figure that is
        the same for all masks has no weight. Without any mask all have the probability 1/2.
    """
    if not weight.sum():
        return Calibration((0.0,) * evidence.shape[1], 0.0)
    spread = evidence.std(0)
    proportions = np.divide(PROPORTIONS, spread, out=np.zeros_like(spread), where=spread > 1e-6)
    total = evidence @ proportions
    mean, scale = total.mean(), total.std() + 1e-6
    scaled = (total - mean) / scale
    sign = np.where(right, 1.0, -1.0)
    share = weight / weight.sum()

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (scaled * parameters[0] + parameters[1])
        slope = -share * sign * expit(-margin)
        penalty = _REGULARISATION * parameters
        gradient = np.array([slope @ scaled, slope.sum()]) + 2 * penalty
        return float(share @ np.logaddexp(0, -margin) + penalty @ parameters), gradient

    bounds = [(0, None), (None, None)]
    slope, bias = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds).x
    weights = slope / scale * proportions
    return Calibration(tuple(weights.tolist()), float(bias - slope / scale * mean))

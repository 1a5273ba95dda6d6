"""Which of an expression's candidates is the referent: Select of Eq. 6 and 7, and a guess without.

Of Select the paper says only that the model does it. Our choice: a candidate's score is what the
queries say for it, max over queries k of sigmoid(c_k) * IoU(s_k, candidate).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ppt.masks import iou


def choose_referent(
    candidate_masks: Tensor | np.ndarray,
    query_masks: Tensor | np.ndarray,
    query_logits: Tensor | np.ndarray,
    min_confidence: float = 0.0,
) -> tuple[int | None, float]:
    """The referent's index among the candidates and its score in [0, 1].

    `candidate_masks` bool [E, H, W] and `query_masks` bool [K, H, W] in one frame and on one
    device, `query_logits` [K] before the sigmoid. None where no query overlaps any candidate, or
    the score is below `min_confidence`: nothing is chosen then. Of equal scores the first wins.
    """
    candidates = torch.as_tensor(candidate_masks).flatten(1).float()
    queries = torch.as_tensor(query_masks).flatten(1).float()
    if not len(candidates) or not len(queries):
        return None, 0.0
    intersection = candidates @ queries.T
    union = candidates.sum(1)[:, None] + queries.sum(1) - intersection
    trust = torch.as_tensor(query_logits).float().sigmoid()
    scores = (intersection / union.clamp(min=1) * trust).amax(1).tolist()
    confidence = max(scores)
    if confidence == 0 or confidence < min_confidence:
        return None, confidence
    return scores.index(confidence), confidence


def most_overlapped(candidate_masks: Sequence[np.ndarray], mask: np.ndarray) -> int | None:
    """The candidate, bool [H, W], that `mask` in the same frame overlaps most by IoU; None: none.

    Our choice for training without Select: `mask` is what frozen CLIP and SAM make of the whole
    expression, the direct pseudo label that Section 3.2 finds poor.
    """
    overlaps = [iou(candidate, mask) for candidate in candidate_masks]
    return overlaps.index(max(overlaps)) if any(overlaps) else None

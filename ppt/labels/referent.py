"""The choice of the referent among an expression's candidates, with and without a trained model.

Select of Eq. 6 and 7 takes the candidate with the highest score. The paper does not define this
score; here it is the maximum over the queries k of sigmoid(c_k) * IoU(s_k, candidate).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ppt.images.masks import iou


def choose_referent(
    candidate_masks: Tensor | np.ndarray,
    query_masks: Tensor | np.ndarray,
    query_logits: Tensor | np.ndarray,
) -> int | None:
    """Return the index of the candidate with the highest score, and the first one of equal scores.

    Args:
        candidate_masks: bool [E, H, W], in any frame.
        query_masks: bool [K, H, W], in the same frame and on the same device.
        query_logits: [K], the referent scores c before the sigmoid.

    Returns:
        The index, or None if no query's mask overlaps any candidate.
    """
    candidates = torch.as_tensor(candidate_masks).flatten(1).float()
    queries = torch.as_tensor(query_masks).flatten(1).float()
    if not len(candidates) or not len(queries):
        return None
    intersection = candidates @ queries.T
    union = candidates.sum(1)[:, None] + queries.sum(1) - intersection
    trust = torch.as_tensor(query_logits).float().sigmoid()
    scores = (intersection / union.clamp(min=1) * trust).amax(1).tolist()
    return scores.index(max(scores)) if max(scores) > 0 else None


def most_overlapped(candidate_masks: Sequence[np.ndarray], mask: np.ndarray) -> int | None:
    """Return the index of the candidate whose IoU with a mask is highest.

    This chooses the referents for training without Select. The mask is then the one that frozen
    CLIP and SAM predict for the whole expression, which Section 3.2 finds to be a poor pseudo
    label.

    Args:
        candidate_masks: the candidates, each bool [H, W].
        mask: bool [H, W], in the same frame.

    Returns:
        The index, or None if the mask overlaps no candidate.
    """
    overlaps = [iou(candidate, mask) for candidate in candidate_masks]
    return overlaps.index(max(overlaps)) if any(overlaps) else None

"""Hungarian matching of queries and pseudo labels, and of the points inside each pair.

Section 3.1.2 asks for the best bipartite matching as in DETR and gives no costs: they are our
choice. A pseudo label's points are drawn at random, so they are a set: each is given to the
predicted point it fits best (our choice; in drawing order an L1 loss pulls all points to the
centre of the box).

Letters: B expressions, K queries, M points, E targets of one expression, G targets of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppt.data.batch import Target


class Match(NamedTuple):
    """The matched pairs of one expression, min(E, K) of them, by rising query."""

    queries: Tensor  # [pairs] long
    targets: Tensor  # [pairs] long
    point_order: Tensor  # [pairs, M] long: predicted point m has target point point_order[m]


class HungarianMatcher:
    """Minimal total cost of points, point labels, referent score and, if weighted, masks."""

    def __init__(
        self,
        *,
        cost_points: float,
        cost_point_labels: float,
        cost_referent: float,
        cost_mask: float = 0.0,
    ) -> None:
        self.cost_points = cost_points
        self.cost_point_labels = cost_point_labels
        self.cost_referent = cost_referent
        self.cost_mask = cost_mask

    @torch.no_grad()
    def __call__(
        self,
        outputs: dict[str, Tensor],
        targets: Sequence[Target],
        mask_logits: Tensor | None = None,
    ) -> list[Match]:
        """One `Match` an expression, on the outputs' device; FloatingPointError for NaN outputs.

        `mask_logits` [B, K, H4, W4] is needed where `cost_mask` > 0; logits outside the picture
        must be very negative.
        """
        device = outputs["pred_points"].device
        counts = [len(target.is_referent) for target in targets]
        cost, orders = self._costs(outputs, targets, np.repeat(np.arange(len(counts)), counts))
        if self.cost_mask > 0:
            assert mask_logits is not None
            cost += self.cost_mask * _mask_cost(mask_logits, targets)
        matches, start = [], 0
        for count in counts:
            rows, queries = linear_sum_assignment(cost[start : start + count])
            by_query = queries.argsort()
            rows, queries = rows[by_query], queries[by_query]
            order = orders[start + rows, queries]
            arrays = (queries, rows, order)
            matches.append(Match(*(torch.from_numpy(a).to(device) for a in arrays)))
            start += count
        return matches

    def _costs(
        self, outputs: dict[str, Tensor], targets: Sequence[Target], expression: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Costs [G, K] and the best order of points [G, K, M]; `expression` [G] of each target."""
        points = _numpy(outputs["pred_points"])[expression]  # [G, K, M, 2]
        labels = _numpy(outputs["pred_point_logits"].sigmoid())[expression]  # [G, K, M]
        scores = _numpy(outputs["pred_referent_logits"].sigmoid())[expression]  # [G, K]
        target_points = _numpy(torch.cat([t.points for t in targets]))[:, None, None]
        target_labels = _numpy(torch.cat([t.point_labels for t in targets]))[:, None, None]
        target_scores = _numpy(torch.cat([t.is_referent for t in targets]))[:, None]
        distance = np.abs(points[:, :, :, None] - target_points).sum(-1)  # [G, K, M, M]
        mislabel = np.abs(labels[..., None] - target_labels)
        pair = self.cost_points * distance + self.cost_point_labels * mislabel
        if not (np.isfinite(pair).all() and np.isfinite(scores).all()):
            raise FloatingPointError("the generator's outputs are not finite")
        orders = np.empty(points.shape[:3], np.int64)
        for index in np.ndindex(orders.shape[:2]):
            orders[index] = linear_sum_assignment(pair[index])[1]
        cost = np.take_along_axis(pair, orders[..., None], axis=-1)[..., 0].mean(-1)
        return cost + self.cost_referent * np.abs(scores - target_scores), orders


def _mask_cost(mask_logits: Tensor, targets: Sequence[Target]) -> np.ndarray:
    """1 - Dice [G, K] of every query's mask with every target of its expression."""
    costs = []
    for logits, target in zip(mask_logits, targets, strict=True):
        masks = logits.sigmoid().flatten(1)
        wanted = target.masks.flatten(1)
        overlap = 2 * wanted @ masks.T + 1
        costs.append(1 - overlap / (wanted.sum(1)[:, None] + masks.sum(1) + 1))
    return _numpy(torch.cat(costs))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()

"""Hungarian matching of queries and pseudo labels, and of the points within each pair.

Section 3.1.2 asks for the best bipartite matching, as in DETR, without giving the costs, which are
therefore configured (`training.match_cost`). The points of a pseudo label are drawn at random and
have no order, so the points of a pair are matched as well.

Letters: B expressions, K queries, M points, E targets of one expression, G targets of a batch,
H4 x W4 SAM's low-resolution padded square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppt.batches.batch import Target


class Match(NamedTuple):
    """The min(E, K) matched pairs of one expression, ordered by query."""

    queries: Tensor  # [pairs] long
    targets: Tensor  # [pairs] long
    point_order: Tensor  # [pairs, M] long: predicted point m has target point point_order[m]


class HungarianMatcher:
    """Finds the matching of least total cost.

    The cost of a pair is the weighted sum of the costs of its points, its point labels, its
    referent score and, if `cost_mask` is above 0, its masks.
    """

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
        """Match the queries of each expression with its pseudo labels.

        Args:
            outputs: the outputs of the generator.
            targets: the pseudo labels of the B expressions.
            mask_logits: [B, K, H4, W4], very negative outside the pictures. They are required if
                `cost_mask` is above 0.

        Returns:
            One `Match` for each expression, on the device of the outputs.

        Raises:
            FloatingPointError: if an output is not finite.
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
        """Return the costs [G, K] without masks, and the best orders of the points [G, K, M].

        `expression` [G] is the index of each target's expression.
        """
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
    """Return 1 - Dice, [G, K], of each target's mask with the masks of its expression's queries."""
    costs = []
    for logits, target in zip(mask_logits, targets, strict=True):
        masks = logits.sigmoid().flatten(1)
        wanted = target.masks.flatten(1)
        overlap = 2 * wanted @ masks.T + 1
        costs.append(1 - overlap / (wanted.sum(1)[:, None] + masks.sum(1) + 1))
    return _numpy(torch.cat(costs))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()

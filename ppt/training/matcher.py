"""Hungarian matching of queries and pseudo labels, and of the points within each pair.

Section 3.1.2 asks for the best bipartite matching, as in DETR, without giving the costs, which are
therefore configured (`training.match_cost`). The points of a pseudo label are drawn at random and
have no order, so the points of a pair are matched as well.

Letters: B expressions, K queries, M points, G targets of a batch, P matched pairs, H4 x W4 SAM's
low-resolution padded square.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppt.batches.batch import Targets


class Match(NamedTuple):
    """The matched pairs, of each expression min(targets, K), ordered by expression and query."""

    queries: Tensor  # [P] long
    targets: Tensor  # [P] long, rows of `Targets`
    point_order: Tensor  # [P, M] long: predicted point m has target point point_order[m]


class HungarianMatcher:
    """Finds the matching of least total cost.

    The cost of a pair is the weighted sum of the costs of its points, its point labels, its
    referent score and, if `cost_mask` is above 0, its masks. The costs are computed on the device
    and fetched at once; this is where the host waits for the device in an iteration.
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
        self, outputs: dict[str, Tensor], targets: Targets, mask_logits: Tensor | None = None
    ) -> Match:
        """Match the queries of each expression with its pseudo labels.

        Args:
            outputs: the outputs of the generator.
            targets: the pseudo labels of the B expressions.
            mask_logits: [B, K, H4, W4], very negative outside the pictures. They are required if
                `cost_mask` is above 0.

        Returns:
            The matched pairs, on the device of the outputs.

        Raises:
            FloatingPointError: if an output is not finite.
        """
        device = outputs["pred_points"].device
        pair, rest = self._costs(outputs, targets)
        if self.cost_mask > 0:
            assert mask_logits is not None
            rest = rest + self.cost_mask * _mask_cost(mask_logits, targets)
        excess, bound = reduced(pair)
        parts = (excess, rest + bound, targets.expression.float())
        fetched = torch.cat([part.flatten() for part in parts]).cpu().numpy()
        if not np.isfinite(fetched).all():
            raise FloatingPointError("the generator's outputs are not finite")
        flat = np.split(fetched, np.cumsum([part.numel() for part in parts])[:-1])
        pairs = match_pairs(*(part.reshape(of.shape) for part, of in zip(flat, parts, strict=True)))
        found = torch.from_numpy(pairs)
        if device.type == "cuda":
            found = found.pin_memory()
        found = found.to(device, non_blocking=True)
        return Match(found[:, 0], found[:, 1], found[:, 2:])

    def _costs(self, outputs: dict[str, Tensor], targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the costs of a target's points with a query's, [G, K, M, M], and of the rest.

        The rest is [G, K], without masks.
        """
        points = outputs["pred_points"].float()[targets.expression]  # [G, K, M, 2]
        labels = outputs["pred_point_logits"].float().sigmoid()[targets.expression]  # [G, K, M]
        scores = outputs["pred_referent_logits"].float().sigmoid()[targets.expression]  # [G, K]
        # The costs of a point and of its label together are an L1 distance, also with three axes.
        ours, theirs = (
            torch.cat([self.cost_points * place, self.cost_point_labels * label[..., None]], dim=-1)
            for place, label in ((points, labels), (targets.points, targets.point_labels))
        )
        pair = torch.cdist(ours.flatten(1, 2), theirs, p=1).unflatten(1, labels.shape[1:])
        return pair, self.cost_referent * (scores - targets.is_referent[:, None]).abs()


def reduced(pair: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract from every column of matrices [..., M, M] its minimum, then the same from every row.

    The best assignments remain the same and are found sooner, and what was subtracted is a bound.

    Returns:
        The matrices, not negative, and [...]: what is subtracted from the mean cost of every
        assignment.
    """
    of_columns = pair.amin(-2, keepdim=True)
    pair = pair - of_columns
    of_rows = pair.amin(-1, keepdim=True)
    return pair - of_rows, of_columns.mean((-2, -1)) + of_rows.mean((-2, -1))


def match_pairs(excess: np.ndarray, least: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """Find the matching of least total cost of each expression.

    The best order of the points is found for those pairs alone that come into question. The
    matching is found with the least possible cost for all others; where it chooses one of them,
    that is replaced by the cost and the matching is found again. Once it chooses none, no other
    matching can cost less.

    Args:
        excess: [G, K, M, M] what each predicted point with each target point adds to `least`, on
            average over the points; not negative.
        least: [G, K] what a pair costs at least, in any order of its points.
        expression: [G] the expression of each target, ascending.

    Returns:
        int64 [P, 2 + M]: the query, the target and the order of the points of each pair, ordered by
        expression and query.
    """
    cost = least.copy()
    orders = np.zeros(excess.shape[:3], np.int64)
    solved = np.zeros(cost.shape, bool)
    starts = np.flatnonzero(np.diff(expression, prepend=-1))
    waiting = list(pairwise([*starts, len(expression)]))  # the targets of an expression each
    found = [np.zeros((0, 2), np.int64)]
    while waiting:
        again, pairs = [], [np.zeros((0, 2), np.int64)]
        for start, stop in waiting:
            targets, queries = linear_sum_assignment(cost[start:stop])
            chosen = np.column_stack([queries, targets + start])
            unknown = chosen[~solved[chosen[:, 1], queries]]
            if len(unknown):
                again.append((start, stop))
                pairs.append(unknown)
            else:
                found.append(chosen)
        k, g = np.concatenate(pairs).T
        of_pairs = excess[g, k]
        order = np.array([linear_sum_assignment(costs)[1] for costs in of_pairs], np.int64)
        order = order.reshape(of_pairs.shape[:2])
        cost[g, k] += np.take_along_axis(of_pairs, order[..., None], 2)[..., 0].mean(1)
        orders[g, k], solved[g, k] = order, True
        waiting = again
    queries, targets = np.concatenate(found).T
    in_order = np.lexsort((queries, expression[targets]))
    queries, targets = queries[in_order], targets[in_order]
    return np.column_stack([queries, targets, orders[targets, queries]])


def _mask_cost(mask_logits: Tensor, targets: Targets) -> Tensor:
    """Return 1 - Dice, [G, K], of each target's mask with the masks of its expression's queries."""
    costs = [mask_logits.new_zeros(0, mask_logits.shape[1])]
    for expression, wanted in zip(targets.expression[:, None], targets.masks, strict=True):
        masks = mask_logits.index_select(0, expression)[0].sigmoid().flatten(1)
        overlap = 2 * masks @ wanted.flatten() + 1
        costs.append((1 - overlap / (wanted.sum() + masks.sum(1) + 1))[None])
    return torch.cat(costs)

"""The training objective of Section 3.1.2 (Eq. 4) over a set of pseudo labels, similar to DETR's.

Letters: B expressions, K queries, M points, P matched pairs of the batch, H4 x W4 SAM's
low-resolution padded square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ppt.batches.batch import Batch, Targets
from ppt.config import LossWeights, MatchCost, Training
from ppt.models.confidence import sample_masks
from ppt.models.point_prompting import PointPrompting
from ppt.training.matcher import HungarianMatcher, Match

Loss = Callable[..., Tensor]
"""A loss of masks takes `DecodedMasks`; one of points or scores takes the outputs and `Pairs`."""


def build_criterion(training: Training) -> SetCriterion:
    """Build the criterion with the costs and weights of a configuration."""
    return SetCriterion(
        training.match_cost, training.loss_weights, max_mask_prompts=training.max_mask_prompts
    )


class SetCriterion(nn.Module):
    """Matches queries with pseudo labels and sums the losses over the matched pairs.

    Every loss is a method of its own. The methods are listed by name in `mask_losses` and
    `point_losses`, and their weights are fields of `LossWeights`. Losses of weight 0 are not
    computed. The mask losses decode only matched queries, and at most `max_mask_prompts` of them in
    an iteration.
    """

    def __init__(
        self,
        match_cost: MatchCost,
        weights: LossWeights,
        *,
        max_mask_prompts: int | None = None,
    ) -> None:
        super().__init__()
        self.matcher = HungarianMatcher(
            cost_points=match_cost.points,
            cost_point_labels=match_cost.point_labels,
            cost_referent=match_cost.referent,
            cost_mask=match_cost.mask,
        )
        self.weights = {f"loss_{name}": weight for name, weight in weights if name != "unmatched"}
        self.unmatched = weights.unmatched
        self.max_mask_prompts = max_mask_prompts
        self.reads_all = weights.aux > 0
        self.mask_losses: dict[str, Loss] = {
            "loss_mask": self.loss_mask,
            "loss_dice": self.loss_dice,
        }
        self.point_losses: dict[str, Loss] = {
            "loss_points": self.loss_points,
            "loss_point_labels": self.loss_point_labels,
            "loss_referent": self.loss_referent,
        }

    def forward(
        self, model: PointPrompting, outputs: dict[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            model: the model, which decodes the masks.
            outputs: the outputs of the model.
            batch: the batch with its targets.

        Returns:
            The losses that have a weight above 0 by name, without these weights, each divided by
            the number of matched pairs averaged over the workers. `loss_aux` is the weighted sum of
            the point losses of the levels before the last one, each of which has a matching of its
            own, as in DETR.
        """
        targets = batch.targets
        assert targets is not None
        mask_logits = _decode_all(model, outputs, batch) if self.matcher.cost_mask > 0 else None
        extent = batch.extent
        pairs = Pairs(targets, self.matcher(outputs, targets, mask_logits), extent)
        losses: dict[str, Tensor] = {}
        if mask_losses := self._weighted(self.mask_losses):
            masks = self._decode_matched(model, outputs, batch, pairs)
            losses |= {name: loss(masks) for name, loss in mask_losses.items()}
        point_losses = self._weighted(self.point_losses)
        losses |= {name: loss(outputs, pairs) for name, loss in point_losses.items()}
        if self.reads_all:
            losses["loss_aux"] = outputs["pred_points"].new_zeros(())
            for level in _earlier_levels(outputs):
                # Levels before the last have no mask losses; a mask cost uses the last one's masks.
                of_level = Pairs(targets, self.matcher(level, targets, mask_logits), extent)
                for name, loss in point_losses.items():
                    weighted = self.weights[name] * loss(level, of_level)
                    losses["loss_aux"] = losses["loss_aux"] + weighted
        num_targets = _mean_over_workers(len(pairs.query), pairs.query.device)
        return {name: loss / num_targets for name, loss in losses.items()}

    def total(self, losses: dict[str, Tensor], outputs: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of losses, a scalar.

        If a loss of points or scores has no weight, the outputs are part of the sum with a factor
        of 0: DDP waits for a gradient of every parameter, also of one that no loss reaches.

        Args:
            losses: what `forward` returned.
            outputs: the outputs of the model for which `forward` was called.
        """
        total = outputs["pred_points"].new_zeros(())
        for name, loss in losses.items():
            total = total + self.weights[name] * loss
        if len(self._weighted(self.point_losses)) < len(self.point_losses):
            predicted = (value for name, value in outputs.items() if name.startswith("pred_"))
            total = total + 0 * sum(value.sum() for value in predicted)
        return total

    def _weighted(self, losses: dict[str, Loss]) -> dict[str, Loss]:
        """Return the losses whose weight is above 0."""
        return {name: loss for name, loss in losses.items() if self.weights[name] > 0}

    # ------------------------------------------------------------ losses of points and scores

    def loss_points(self, outputs: dict[str, Tensor], pairs: Pairs) -> Tensor:
        """Return the L1 distances of the points (Eq. 4).

        They are averaged over the points of each pair and summed over the pairs.
        """
        points = outputs["pred_points"][pairs.expression, pairs.query]
        return (points - pairs.points).abs().sum(-1).mean(-1).sum()

    def loss_point_labels(self, outputs: dict[str, Tensor], pairs: Pairs) -> Tensor:
        """Return the binary cross-entropy of the point labels r (Eq. 4), summed over the pairs.

        A point is labelled by the pseudo mask of its pair at the place where the point itself lies,
        not by the target point with which it is matched.
        """
        points = outputs["pred_points"][pairs.expression, pairs.query].detach()
        logits = outputs["pred_point_logits"][pairs.expression, pairs.query]
        wanted = sample_masks(pairs.masks, points, pairs.extent)
        labels = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return labels.mean(-1).sum()

    def loss_referent(self, outputs: dict[str, Tensor], pairs: Pairs) -> Tensor:
        """Return the binary cross-entropy of the referent scores c (Eq. 4) of all queries, summed.

        The target of an unmatched query is 0, with the weight `unmatched`, as in DETR.
        """
        logits = outputs["pred_referent_logits"]
        wanted = torch.zeros_like(logits)
        wanted[pairs.expression, pairs.query] = pairs.is_referent
        weight = torch.full_like(logits, self.unmatched)
        weight[pairs.expression, pairs.query] = torch.ones_like(pairs.is_referent)
        return F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")

    # ------------------------------------------------------------ losses of masks

    def loss_mask(self, masks: DecodedMasks) -> Tensor:
        """Return the binary cross-entropy of the masks, summed over the pairs.

        It is averaged over the part of SAM's padded square that the picture fills.
        """
        bce = F.binary_cross_entropy_with_logits(
            masks.logits, masks.targets, masks.valid, reduction="none"
        )
        return (bce.sum((1, 2)) / masks.valid.sum((1, 2))).sum() / masks.share

    def loss_dice(self, masks: DecodedMasks) -> Tensor:
        """Return the Dice loss of the masks, summed over the pairs.

        Only the part of SAM's padded square that the picture fills is counted.
        """
        predicted, wanted = masks.logits.sigmoid() * masks.valid, masks.targets * masks.valid
        overlap = 2 * (predicted * wanted).sum((1, 2)) + 1
        dice = 1 - overlap / (predicted.sum((1, 2)) + wanted.sum((1, 2)) + 1)
        return dice.sum() / masks.share

    def _decode_matched(
        self, model: PointPrompting, outputs: dict[str, Tensor], batch: Batch, pairs: Pairs
    ) -> DecodedMasks:
        """Decode the masks of the matched queries.

        If there are more than `max_mask_prompts`, evenly spaced ones are decoded, and the losses
        are scaled up by `share`.
        """
        share, expression, query, masks = 1.0, pairs.expression, pairs.query, pairs.masks
        if self.max_mask_prompts is not None and len(query) > self.max_mask_prompts:
            chosen = torch.linspace(0, len(query) - 1, self.max_mask_prompts, device=query.device)
            chosen = chosen.long()
            share = len(chosen) / len(query)
            expression, query, masks = expression[chosen], query[chosen], masks[chosen]
        logits = model.decode(outputs, batch, expression, query)
        valid = model.segmenter.valid_mask(batch.sizes)[batch.picture_index[expression]].float()
        return DecodedMasks(logits, masks, valid, share)


@dataclass(frozen=True)
class DecodedMasks:
    """The decoded masks of D matched pairs with their targets, in SAM's low-resolution square."""

    logits: Tensor  # [D, H4, W4]
    targets: Tensor  # [D, H4, W4] float 0/1
    valid: Tensor  # [D, H4, W4] float, 1 where the picture lies
    share: float  # D divided by the number of matched pairs


class Pairs:
    """The P matched pairs of a batch, with the targets in the order of the matched queries."""

    def __init__(self, targets: Targets, match: Match, extent: Tensor) -> None:
        """`extent` [B, 2] is that of the batch."""
        self.query = match.queries  # [P]
        self.expression = targets.expression[match.targets]  # [P]
        order = match.point_order[..., None].expand(-1, -1, 2)
        self.points = targets.points[match.targets].gather(1, order)  # [P, M, 2]
        self.extent = extent[self.expression]  # [P, 2]
        self.masks = targets.masks[match.targets]  # [P, H4, W4]
        self.is_referent = targets.is_referent[match.targets]  # [P]


def _earlier_levels(outputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the outputs of each level before the last one from the stacked `aux_` outputs."""
    stacked = {name[4:]: value for name, value in outputs.items() if name.startswith("aux_")}
    for n in range(len(next(iter(stacked.values()), ()))):
        yield {name: value[n] for name, value in stacked.items()}


@torch.no_grad()
def _decode_all(model: PointPrompting, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """Return the mask logits [B, K, H4, W4] of all queries, very negative outside the pictures."""
    num_expressions, num_queries = outputs["pred_referent_logits"].shape
    device = batch.picture_index.device
    expression = torch.arange(num_expressions, device=device).repeat_interleave(num_queries)
    query = torch.arange(num_queries, device=device).repeat(num_expressions)
    logits = model.decode(outputs, batch, expression, query)
    valid = model.segmenter.valid_mask(batch.sizes)[batch.picture_index[expression]]
    logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
    return logits.unflatten(0, (num_expressions, num_queries))


def _mean_over_workers(count: int, device: torch.device) -> Tensor | int:
    """Return the mean over the workers of a number of targets, at least 1.

    DDP averages gradients over the workers, so losses divided by this mean are in effect divided by
    the targets of all workers.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return max(count, 1)
    total = torch.full((), float(count), device=device)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).clamp(min=1)

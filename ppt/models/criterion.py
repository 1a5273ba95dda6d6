"""The objective of Section 3.1.2, Eq. 4, over a set of pseudo labels, after DETR's SetCriterion.

Letters: B expressions, K queries, M points, P matched pairs of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ppt.config import LossWeights, MatchCost, Training
from ppt.data.batch import Batch, Target
from ppt.models.matcher import HungarianMatcher, Match
from ppt.models.point_prompting import PointPrompting


def build_criterion(training: Training) -> SetCriterion:
    """The criterion with a run's costs and weights."""
    return SetCriterion(
        training.match_cost, training.loss_weights, max_mask_prompts=training.max_mask_prompts
    )


class SetCriterion(nn.Module):
    """Matches queries with pseudo labels, then sums the losses over the matched pairs.

    Only matched queries are decoded, so a step costs as many masks as there are pseudo labels;
    `max_mask_prompts` bounds even that.
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
        self.weights = {
            "loss_mask": weights.mask,
            "loss_dice": weights.dice,
            "loss_points": weights.points,
            "loss_point_labels": weights.point_labels,
            "loss_referent": weights.referent,
            "loss_aux": weights.aux,
        }
        self.unmatched = weights.unmatched
        self.max_mask_prompts = max_mask_prompts

    def forward(
        self, model: PointPrompting, outputs: dict[str, Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Named losses without weights, each divided by the mean number of targets a worker.

        `loss_aux` is the weighted sum of the point and referent losses of the stages before the
        last, each matched anew as in DETR; without a weight for it, it is not there.
        """
        targets = batch.targets
        assert targets is not None
        mask_logits = _decode_all(model, outputs, batch) if self.matcher.cost_mask > 0 else None
        pairs = _Pairs(targets, self.matcher(outputs, targets, mask_logits))
        losses = {
            **self._mask_losses(model, outputs, batch, pairs),
            **self._point_losses(outputs, pairs),
        }
        if self.weights["loss_aux"] > 0:
            losses["loss_aux"] = outputs["pred_points"].new_zeros(())
            for stage in _earlier_stages(outputs):
                # Masks take no part: decoding every stage would cost more than it teaches.
                matches = self.matcher(stage, targets, mask_logits)
                for name, loss in self._point_losses(stage, _Pairs(targets, matches)).items():
                    losses["loss_aux"] = losses["loss_aux"] + self.weights[name] * loss
        num_targets = _mean_over_workers(len(pairs.query), pairs.query.device)
        return {name: loss / num_targets for name, loss in losses.items()}

    def _point_losses(self, outputs: dict[str, Tensor], pairs: _Pairs) -> dict[str, Tensor]:
        """The point prompt loss and the referent loss of Eq. 4, summed over the pairs."""
        points = outputs["pred_points"][pairs.expression, pairs.query]
        logits = outputs["pred_point_logits"][pairs.expression, pairs.query]
        labels = F.binary_cross_entropy_with_logits(logits, pairs.point_labels, reduction="none")
        return {
            "loss_points": (points - pairs.points).abs().sum(-1).mean(-1).sum(),
            "loss_point_labels": labels.mean(-1).sum(),
            "loss_referent": self._referent_loss(outputs["pred_referent_logits"], pairs),
        }

    def _referent_loss(self, logits: Tensor, pairs: _Pairs) -> Tensor:
        """BCE; a query without a pseudo label should score 0, with little weight (as DETR)."""
        wanted = torch.zeros_like(logits)
        wanted[pairs.expression, pairs.query] = pairs.is_referent
        weight = torch.full_like(logits, self.unmatched)
        weight[pairs.expression, pairs.query] = 1.0
        return F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")

    def _mask_losses(
        self,
        model: PointPrompting,
        outputs: dict[str, Tensor],
        batch: Batch,
        pairs: _Pairs,
    ) -> dict[str, Tensor]:
        """BCE and Dice over the picture's part of SAM's padded square, summed over the pairs."""
        share, expression, query, masks = 1.0, pairs.expression, pairs.query, pairs.masks
        if self.max_mask_prompts is not None and len(query) > self.max_mask_prompts:
            chosen = torch.linspace(0, len(query) - 1, self.max_mask_prompts).long()
            chosen = chosen.to(query.device)
            share = len(chosen) / len(query)
            expression, query, masks = expression[chosen], query[chosen], masks[chosen]
        logits = model.decode(outputs, batch, expression, query)
        valid = model.decoder.valid_mask(batch.sizes)[batch.picture_index[expression]].float()
        area = valid.sum((1, 2))
        bce = F.binary_cross_entropy_with_logits(logits, masks, valid, reduction="none")
        predicted, wanted = logits.sigmoid() * valid, masks * valid
        overlap = 2 * (predicted * wanted).sum((1, 2)) + 1
        dice = 1 - overlap / (predicted.sum((1, 2)) + wanted.sum((1, 2)) + 1)
        return {
            "loss_mask": (bce.sum((1, 2)) / area).sum() / share,
            "loss_dice": dice.sum() / share,
        }


class _Pairs:
    """The matched pairs of a batch, side by side: P of them."""

    def __init__(self, targets: Sequence[Target], matches: Sequence[Match]) -> None:
        both = list(zip(targets, matches, strict=True))
        self.query = torch.cat([match.queries for match in matches])  # [P]
        device = self.query.device
        counts = torch.tensor([len(match.queries) for match in matches], device=device)
        numbers = torch.arange(len(matches), device=device)
        self.expression = torch.repeat_interleave(numbers, counts)  # [P]
        order = torch.cat([match.point_order for match in matches])  # [P, M]
        points = torch.cat([t.points[m.targets] for t, m in both])
        labels = torch.cat([t.point_labels[m.targets] for t, m in both])
        self.points = points.gather(1, order[..., None].expand(-1, -1, 2))  # [P, M, 2]
        self.point_labels = labels.gather(1, order)  # [P, M]
        self.masks = torch.cat([t.masks[m.targets] for t, m in both])  # [P, H4, W4]
        self.is_referent = torch.cat([t.is_referent[m.targets] for t, m in both])  # [P]


def _earlier_stages(outputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The outputs of each stage before the last, as `PointGenerator.forward` stacks them."""
    stacked = {name[4:]: value for name, value in outputs.items() if name.startswith("aux_")}
    for n in range(len(next(iter(stacked.values()), ()))):
        yield {name: value[n] for name, value in stacked.items()}


@torch.no_grad()
def _decode_all(model: PointPrompting, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """Logits [B, K, H4, W4] of all queries, hugely negative outside the pictures."""
    num_expressions, num_queries = outputs["pred_referent_logits"].shape
    device = batch.picture_index.device
    expression = torch.arange(num_expressions, device=device).repeat_interleave(num_queries)
    query = torch.arange(num_queries, device=device).repeat(num_expressions)
    logits = model.decode(outputs, batch, expression, query)
    valid = model.decoder.valid_mask(batch.sizes)[batch.picture_index[expression]]
    logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
    return logits.unflatten(0, (num_expressions, num_queries))


def _mean_over_workers(count: int, device: torch.device) -> float:
    """Targets a worker, at least 1: the gradient mean of DDP then divides by all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return max(count, 1)
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return max(total.item() / dist.get_world_size(), 1.0)

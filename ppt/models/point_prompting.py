"""f_theta of Eq. 3: from a picture and an expression to K masks with point prompts and scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppt.batches.batch import Batch
from ppt.models.confidence import gather_evidence
from ppt.models.point_generator import NO_POINT, PointGenerator
from ppt.models.segmenter import Segmenter


@dataclass
class Predictions:
    """The query with the highest score for each of B expressions."""

    points: Tensor  # [B, M, 2] normalised (x, y), in the order of r, the highest first
    point_labels: Tensor  # [B, M] long, as the segmenter got them, see `PointGenerator`
    scores: Tensor  # [B] c of Eq. 2, in (0, 1)
    evidence: Tensor | None  # [B, 3], see `confidence`; None if the batch has no similarity
    attention: Tensor  # [B, L] where the query looked in the last level, patch by patch
    masks: list[Tensor]  # B bool [height, width] of the original pictures
    masks_without: list[Tensor] | None  # the same for the prompts without their negative points


class PointPrompting(nn.Module):
    """A trainable point generator in front of a frozen segmenter, which others may share."""

    def __init__(self, generator: PointGenerator, segmenter: Segmenter) -> None:
        super().__init__()
        self.generator = generator
        self.prompt_labels = generator.prompt_labels  # `generator` may be wrapped in DDP later
        self.segmenter = segmenter

    def forward(self, batch: Batch, *, read_all: bool = True) -> dict[str, Tensor]:
        """Return the outputs of `PointGenerator.forward`; masks are decoded by `decode`."""
        return self.generator(
            batch.visual_features,
            batch.word_features,
            batch.word_mask,
            batch.picture_index,
            read_all=read_all,
        )

    def decode(
        self,
        outputs: dict[str, Tensor],
        batch: Batch,
        expression_index: Tensor,
        query_index: Tensor,
    ) -> Tensor:
        """Decode the masks of P pairs of an expression and one of its queries.

        Args:
            outputs: what `forward` gave for `batch`.
            batch: the B expressions.
            expression_index: [P], rows of the batch.
            query_index: [P], from 0 to K - 1.

        Returns:
            Logits [P, H4, W4] in the padded square, see `Segmenter.decode`; gradients reach the
            points.
        """
        points = outputs["pred_points"][expression_index, query_index]
        point_logits = outputs["pred_point_logits"][expression_index, query_index]
        labels = self.prompt_labels(point_logits)
        return self._decode_prompts(batch, expression_index, points, labels)

    def _decode_prompts(
        self, batch: Batch, expression_index: Tensor, points: Tensor, point_labels: Tensor
    ) -> Tensor:
        """Decode prompts [P, M] of the expressions [P] of a batch: logits [P, H4, W4]."""
        logits, _ = self.segmenter.decode(
            batch.segmenter_features,
            batch.picture_index[expression_index],
            points,
            point_labels,
            batch.sizes,
            multimask_output=False,
        )
        return logits[:, 0]

    @torch.no_grad()
    def predict(self, batch: Batch, *, without_negatives: bool = False) -> Predictions:
        """Predict the referent of each expression: the mask of argmax c (end of Section 3.1.2).

        With `without_negatives`, each prompt is also decoded without its negative points.
        """
        outputs = self(batch, read_all=batch.similarity is not None)  # for the evidence
        scores, best = outputs["pred_referent_logits"].sigmoid().max(1)
        rows = torch.arange(len(best), device=best.device)
        point_logits, order = outputs["pred_point_logits"][rows, best].sort(1, descending=True)
        points = outputs["pred_points"][rows, best].gather(1, order[..., None].expand(-1, -1, 2))
        labels = self.prompt_labels(point_logits)
        logits = self._decode_prompts(batch, rows, points, labels)
        masks, masks_without = self._finish(logits, batch, rows), None
        if without_negatives:
            masks_without = list(masks)
            some = (labels == 0).any(1).nonzero()[:, 0]
            positive = labels[some].where(labels[some] == 1, NO_POINT)
            if len(some):
                changed = self._decode_prompts(batch, some, points[some], positive)
                finished = self._finish(changed, batch, some)
                for row, mask in zip(some.tolist(), finished, strict=True):
                    masks_without[row] = mask
        evidence = None
        if batch.similarity is not None:
            evidence = gather_evidence(
                logits,
                self.segmenter.valid_mask(batch.sizes)[batch.picture_index],
                outputs["aux_pred_points"][:, rows, best],
                batch.extent,
                batch.similarity,
            )
        attention = outputs["attention"][rows, best]
        return Predictions(points, labels, scores, evidence, attention, masks, masks_without)

    def _finish(self, logits: Tensor, batch: Batch, expression_index: Tensor) -> list[Tensor]:
        """Turn logits [P, H4, W4] of expressions [P] into P masks, bool [height, width]."""
        sizes = batch.sizes[batch.picture_index[expression_index]]
        return self.segmenter.finish_batch(logits, sizes)

"""f_theta of Eq. 3: from a picture and an expression to K masks with point prompts and scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppt.batches.batch import Batch
from ppt.models.point_generator import PointGenerator
from ppt.models.precision import autocast
from ppt.models.segmenter import Segmenter


@dataclass
class Predictions:
    """The query with the highest score for each of B expressions."""

    points: Tensor  # [B, M, 2] normalised (x, y)
    point_labels: Tensor  # [B, M] long, 1 foreground, 0 background, as the segmenter got them
    point_scores: Tensor  # [B, M] r of Eq. 2, in (0, 1)
    referent_scores: Tensor  # [B, K] c of Eq. 2, in (0, 1)
    best_query: Tensor  # [B] long
    masks: list[Tensor]  # B bool [height, width] of the original pictures


class PointPrompting(nn.Module):
    """A trainable point generator in front of a frozen segmenter, which others may share."""

    def __init__(self, generator: PointGenerator, segmenter: Segmenter) -> None:
        super().__init__()
        self.generator = generator
        self.segmenter = segmenter

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the outputs of `PointGenerator.forward`; masks are decoded by `decode`."""
        with autocast(batch.picture_index.device):
            return self.generator(
                batch.visual_features, batch.word_features, batch.word_mask, batch.picture_index
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
        logits, _ = self.segmenter.decode(
            batch.segmenter_features,
            batch.picture_index[expression_index],
            outputs["pred_points"][expression_index, query_index],
            hard_labels(outputs["pred_point_logits"][expression_index, query_index]),
            batch.sizes,
            multimask_output=False,
        )
        return logits[:, 0]

    @torch.no_grad()
    def predict(self, batch: Batch) -> Predictions:
        """Predict the referent of each expression: the mask of argmax c (end of Section 3.1.2)."""
        outputs = self(batch)
        referent_logits = outputs["pred_referent_logits"]
        best = referent_logits.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        logits = self.decode(outputs, batch, rows, best)
        point_logits = outputs["pred_point_logits"][rows, best]
        return Predictions(
            points=outputs["pred_points"][rows, best],
            point_labels=hard_labels(point_logits),
            point_scores=point_logits.sigmoid(),
            referent_scores=referent_logits.sigmoid(),
            best_query=best,
            masks=self.segmenter.finish_batch(logits, batch.sizes[batch.picture_index]),
        )


def hard_labels(point_logits: Tensor) -> Tensor:
    """Turn logits [P, M] into point labels: 1 where the logit is positive, else 0.

    The point with the highest logit of a prompt is always foreground (our choice), for without such
    a point a segmenter segments nothing in particular.
    """
    labels = (point_logits > 0).long()
    return labels.scatter(1, point_logits.argmax(1, keepdim=True), 1)

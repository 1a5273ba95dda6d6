"""f_theta of Eq. 3: expression and picture in, K (mask, point prompt, score) out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppt.data.batch import Batch
from ppt.models.point_generator import PointGenerator
from ppt.models.precision import autocast
from ppt.models.sam_decoder import SamDecoder


@dataclass
class Predictions:
    """The query with the highest score for each of B expressions."""

    points: Tensor  # [B, M, 2] normalised (x, y)
    point_labels: Tensor  # [B, M] long, 1 foreground, 0 background: what SAM was given
    point_scores: Tensor  # [B, M] r of Eq. 2, in (0, 1)
    referent_scores: Tensor  # [B, K] c of Eq. 2, in (0, 1)
    best_query: Tensor  # [B] long
    masks: list[Tensor]  # B bool [height, width] of the original pictures


class PointPrompting(nn.Module):
    """A trainable point generator in front of a frozen, shared SAM decoder."""

    def __init__(self, generator: PointGenerator, decoder: SamDecoder) -> None:
        super().__init__()
        self.generator = generator
        self.decoder = decoder

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The generator's outputs, see `PointGenerator.forward`; masks are decoded on demand."""
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
        """Low-resolution logits [P, H4, W4] of P (expression, query) pairs; gradient to points."""
        logits, _ = self.decoder.decode(
            batch.image_embeddings,
            batch.picture_index[expression_index],
            outputs["pred_points"][expression_index, query_index],
            hard_labels(outputs["pred_point_logits"][expression_index, query_index]),
            batch.sizes,
            multimask_output=False,
        )
        return logits[:, 0]

    @torch.no_grad()
    def predict(self, batch: Batch) -> Predictions:
        """The referent of each expression: the mask of argmax c (end of Section 3.1.2)."""
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
            masks=self.decoder.finish_batch(logits, batch.sizes[batch.picture_index]),
        )


def hard_labels(point_logits: Tensor) -> Tensor:
    """[P, M] logits -> SAM's labels: 1 where r > 0, else 0; the highest is always 1.

    SAM wants a foreground point; without one it segments nothing in particular (our choice).
    """
    labels = (point_logits > 0).long()
    return labels.scatter(1, point_logits.argmax(1, keepdim=True), 1)

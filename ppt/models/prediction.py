"""The predictions of a model for batches of expressions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ppt.batches.batch import Batch
from ppt.models.point_prompting import PointPrompting


@dataclass
class Prediction:
    """The segmentation of one expression."""

    picture: str
    expression_id: str
    text: str
    mask: np.ndarray  # bool [height, width] of the original picture
    points: np.ndarray  # float32 [M, 2] normalised (x, y)
    point_labels: np.ndarray  # int8 [M], 1 foreground, 0 background
    score: float  # referent confidence, 0..1


@torch.no_grad()
def predict_batches(
    model: PointPrompting, batches: Iterable[Batch], *, device: torch.device | str = "cpu"
) -> Iterator[Prediction]:
    """Yield one `Prediction` for each expression, in the order of the batches."""
    model.eval()
    for batch in batches:
        found = model.predict(batch.to(device))
        for i, picture in enumerate(batch.picture_index.tolist()):
            yield Prediction(
                picture=batch.pictures[picture],
                expression_id=batch.expression_ids[i],
                text=batch.texts[i],
                mask=found.masks[i].cpu().numpy(),
                points=found.points[i].cpu().numpy(),
                point_labels=found.point_labels[i].cpu().numpy().astype(np.int8),
                score=found.referent_scores[i].max().item(),
            )

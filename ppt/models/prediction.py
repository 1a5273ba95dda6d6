"""The predictions of a model for batches of expressions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ppt.batches.batch import Batch
from ppt.models.confidence import Calibration
from ppt.models.point_generator import NO_POINT
from ppt.models.point_prompting import PointPrompting


@dataclass
class Prediction:
    """The segmentation of one expression."""

    picture: str
    expression_id: str
    text: str
    mask: np.ndarray  # bool [height, width] of the original picture
    points: np.ndarray  # float32 [P, 2] normalised (x, y), at most M, the surest positive first
    point_labels: np.ndarray  # int8 [P], 1 foreground, 0 background
    score: float  # how likely the mask is right, 0..1; without a calibration c of Eq. 2
    evidence: np.ndarray | None  # float32 [3], see `ppt.models.confidence`
    attention: np.ndarray  # float32 [g, g], where the query looked, adding up to 1
    mask_without: np.ndarray | None  # `mask` without the prompt's negative points


@torch.no_grad()
def predict_batches(
    model: PointPrompting,
    batches: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    calibration: Calibration | None = None,
    without_negatives: bool = False,
) -> Iterator[Prediction]:
    """Yield one `Prediction` for each expression, in the order of the batches.

    Args:
        model: the model.
        batches: the batches. For a calibration, and for evidence, they need the similarity.
        device: the device to which the batches are moved.
        calibration: makes the score out of the evidence.
        without_negatives: whether each prompt is also decoded without its negative points.
    """
    model.eval()
    for batch in batches:
        found = model.predict(batch.to(device), without_negatives=without_negatives)
        side = math.isqrt(found.attention.shape[1])
        attention = found.attention.float().unflatten(1, (side, side)).cpu().numpy()
        scores = found.scores.float().cpu().numpy()
        evidence = None if found.evidence is None else found.evidence.cpu().numpy()
        if calibration is not None:
            if evidence is None:
                raise ValueError("a calibration needs batches with a similarity")
            scores = calibration.probability(evidence)
        for i, picture in enumerate(batch.picture_index.tolist()):
            prompted = found.point_labels[i] != NO_POINT
            yield Prediction(
                picture=batch.pictures[picture],
                expression_id=batch.expression_ids[i],
                text=batch.texts[i],
                mask=found.masks[i].cpu().numpy(),
                points=found.points[i][prompted].cpu().numpy(),
                point_labels=found.point_labels[i][prompted].cpu().numpy().astype(np.int8),
                score=float(scores[i]),
                evidence=None if evidence is None else evidence[i],
                attention=attention[i],
                mask_without=found.masks_without[i].cpu().numpy() if without_negatives else None,
            )

"""Training and evaluation over any iterator of batches; nothing here knows of Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ppt.data.batch import Batch
from ppt.models.criterion import SetCriterion
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


def train_one_epoch(
    model: PointPrompting,
    criterion: SetCriterion,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    device: torch.device | str,
    max_norm: float,
    scheduler: LRScheduler | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """One pass over `batches`. For data parallelism `model.generator` may be wrapped in DDP.

    `scheduler` goes on by a step at a time; `on_step(step, losses)` hears each step's losses.
    Returns their means, `loss` is the weighted sum. Raises FloatingPointError when a loss is not
    finite.
    """
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums: dict[str, float] = {}
    step = 0
    for step, batch in enumerate(batches, start=1):
        batch = batch.to(device)
        outputs = model(batch)
        losses = criterion(model, outputs, batch)
        loss = sum(criterion.weights[name] * value for name, value in losses.items())
        values = {name: value.item() for name, value in {"loss": loss, **losses}.items()}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"step {step}: loss is not finite: {values}")

        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()

        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        if on_step is not None:
            on_step(step, values)
    return {name: total / step for name, total in sums.items()}


@torch.no_grad()
def evaluate(
    model: PointPrompting, batches: Iterable[Batch], *, device: torch.device | str = "cpu"
) -> Iterator[Prediction]:
    """One `Prediction` an expression, in the batches' order."""
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

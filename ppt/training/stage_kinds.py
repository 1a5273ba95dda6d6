"""The kinds of stages, which determine how the workers of a stage train.

The configuration selects a kind as `stages.NAME.kind`. A new kind is a subclass of `StageWorker` in
a file of its own, and an entry in `STAGE_KINDS`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ppt.training.loop import StageWorker
from ppt.training.stage import StageTraining

STAGE_KINDS: dict[str, type[StageWorker]] = {
    "standard": StageWorker,
}


def build_worker(
    stage: StageTraining, device: torch.device | str, checkpoint: str | Path | None = None
) -> StageWorker:
    """Build a worker of the stage's kind; the arguments are those of `StageWorker`."""
    return STAGE_KINDS[stage.stage.kind](stage, device, checkpoint)

"""What a run that is one of several knows of them; a sweep's trials are such runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ppt.pipeline.record import StageRecord
from ppt.store import Node


class Listener(Protocol):
    """Who wants to hear how far a run has come."""

    def epoch(self, step: str, checkpoint: Node, epoch: int) -> None:
        """An epoch of a training run is done, or was before; not called on the main thread."""

    def stage(self, record: StageRecord, score: float) -> None:
        """A training run is measured; `score` is what `model_selection` would choose it by."""


@dataclass(frozen=True)
class Sibling:
    runs: int  # how many share the cluster at a time
    parent: str  # their common MLflow run
    listener: Listener

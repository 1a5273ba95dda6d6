"""A run that is one of several, such as a trial of a sweep, and the listener to its progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ppt.store.nodes import Node
from ppt.tracking.record import StageRecord


class Listener(Protocol):
    """An object that is told about the progress of a run."""

    def epoch(self, training: str, checkpoint: Node, epoch: int) -> None:
        """Take note that an epoch of a training is done, in this run or in an earlier one.

        The call may come from another thread than the main one.
        """

    def stage(self, record: StageRecord, score: float) -> None:
        """Take note that a training has been measured.

        `score` is the figure in percent by which `model_selection` chooses, or NaN if it needs
        none.
        """


@dataclass(frozen=True)
class Sibling:
    """The parent run in MLflow and the progress listener of a run that belongs to a sweep."""

    parent: str  # the id of the MLflow run of the sweep
    listener: Listener

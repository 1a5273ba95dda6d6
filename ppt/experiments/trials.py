"""The trials of a sweep: their curricula before the search, and reports of their progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ppt.config import Curriculum
from ppt.curriculum.stages import training_runs
from ppt.experiments.sweep import Sweep, Values, curriculum_of, trials_of
from ppt.store.nodes import Node, Store
from ppt.tracking.record import StageRecord

METRIC, TIME = "pseudo_iou", "epochs"
"""The figure by which trials are compared, and the unit in which their progress is counted."""


@dataclass(frozen=True)
class Planned:
    """A trial that is known before the search, or for optuna an example of what may be tried."""

    name: str
    values: Values
    curriculum: Curriculum

    @property
    def num_epochs(self) -> int:
        """The epochs of all trainings of the trial."""
        return num_epochs_of(self.curriculum)


def num_epochs_of(curriculum: Curriculum) -> int:
    """Return the number of epochs of all trainings of a curriculum."""
    return sum(stage.num_epochs for _, stage, _ in training_runs(curriculum))


def plan_trials(sweep: Sweep, overrides: Sequence[str]) -> list[Planned]:
    """Return every trial with its curriculum; for optuna, examples that cover the space.

    Raises ConfigError if the curriculum of a trial is invalid.
    """
    trials = trials_of(sweep) if sweep.search != "optuna" else _corners(sweep)
    return [
        Planned(f"{i:02d}", values, curriculum_here(sweep, f"{i:02d}", values, overrides))
        for i, values in enumerate(trials)
    ]


def _corners(sweep: Sweep) -> list[Values]:
    """Return trials that have each value of a list and both ends of each range at least once.

    They are enough to find any value that makes a curriculum invalid.
    """
    ends = {
        key: values if isinstance(values, list) else [values.min, values.max]
        for key, values in sweep.space.items()
    }
    longest = max(len(values) for values in ends.values())
    return [{key: v[min(i, len(v) - 1)] for key, v in ends.items()} for i in range(longest)]


def curriculum_here(
    sweep: Sweep, name: str, values: Values, overrides: Sequence[str]
) -> Curriculum:
    """Return the curriculum of a trial in the form in which any process can run it.

    If the store is a local folder, its path is made absolute, because a trial may run in another
    folder.

    Args:
        sweep: the sweep.
        name: the name of the trial.
        values: the trial's value of each key that the sweep varies.
        overrides: changes of the curriculum of every trial, such as "seed=7".
    """
    curriculum = curriculum_of(sweep, name, values, overrides)
    store = Store(curriculum.store)
    return curriculum.model_copy(update={"store": store.path}) if store.is_local else curriculum


class Reporter:
    """The reporter of a trial, which tells Tune how far the trial is.

    It reports after each stage, and from the second stage on after each epoch. `pseudo_iou` is that
    of the best stage so far, which `model_selection` would choose. During the first stage no stage
    has been measured yet, so nothing is reported.
    """

    def __init__(self, curriculum: Curriculum, report: Callable[[dict[str, Any]], None]) -> None:
        self._last = {name: stage.num_epochs for _, stage, name in training_runs(curriculum)}
        self._report = report
        self._reached: dict[str, tuple[str, int]] = {}  # by training: checkpoint's digest, epochs
        self._best: dict[str, Any] = {}

    def epoch(self, training: str, checkpoint: Node, epoch: int) -> None:
        """Note an epoch of a training, and report it unless it is the training's last one."""
        self._reached[training] = checkpoint.digest, epoch
        if self._best and epoch < self._last[training]:  # `stage` reports the last one
            self._tell(training, measured=False)

    def stage(self, record: StageRecord, score: float) -> None:
        """Note a measured training, and report it. `score` is its pseudo-IoU in percent."""
        self._reached[record.name] = record.checkpoint.digest, record.num_epochs
        if not self._best or score >= self._best[METRIC]:
            self._best = {METRIC: score, "mIoU": record.metrics["mIoU"], "stage": record.name}
        self._tell(record.name, measured=True)

    def _tell(self, training: str, *, measured: bool) -> None:
        epochs = sum(epochs for _, epochs in self._reached.values())
        where = {
            TIME: epochs,
            "training": training,
            "measured": measured,
            "reached": dict(self._reached),
        }
        self._report({**self._best, **where})

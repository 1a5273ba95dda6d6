"""A sweep's trials: what each is before the search, and how it runs and tells how far it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune

from ppt.config import Curriculum
from ppt.pipeline.curriculum import run_curriculum, training_runs
from ppt.pipeline.record import StageRecord
from ppt.pipeline.sibling import Sibling
from ppt.pipeline.sweep.config import Sweep, Values, curriculum_of, trials_of
from ppt.store import Node, Store

METRIC, TIME = "pseudo_iou", "epochs"
"""What trials are compared by, and what their time is counted in."""


@dataclass(frozen=True)
class Planned:
    """A trial that is known before the search; for optuna one that stands for all."""

    name: str
    values: Values
    curriculum: Curriculum

    @property
    def num_epochs(self) -> int:
        return num_epochs_of(self.curriculum)


def num_epochs_of(curriculum: Curriculum) -> int:
    return sum(stage.num_epochs for _, stage, _ in training_runs(curriculum))


def plan_trials(sweep: Sweep, overrides: Sequence[str]) -> list[Planned]:
    """Every trial with its curriculum; ConfigError for one that cannot be."""
    trials = trials_of(sweep) if sweep.search != "optuna" else _corners(sweep)
    return [
        Planned(f"{i:02d}", values, curriculum_here(sweep, f"{i:02d}", values, overrides))
        for i, values in enumerate(trials)
    ]


def _corners(sweep: Sweep) -> list[Values]:
    """Each value of a list and both ends of a range at least once: all that can be wrong."""
    ends = {
        key: values if isinstance(values, list) else [values.min, values.max]
        for key, values in sweep.space.items()
    }
    longest = max(len(values) for values in ends.values())
    return [{key: v[min(i, len(v) - 1)] for key, v in ends.items()} for i in range(longest)]


def curriculum_here(
    sweep: Sweep, name: str, values: Values, overrides: Sequence[str]
) -> Curriculum:
    curriculum = curriculum_of(sweep, name, values, overrides)
    store = Store(curriculum.store)
    # A trial may run on another machine, or elsewhere on this one.
    return curriculum.model_copy(update={"store": store.path}) if store.is_local else curriculum


def trainable(
    sweep: Sweep,
    overrides: Sequence[str],
    planned: Sequence[Planned],
    runs: int,
    state: Mapping[str, Any],
) -> Any:
    """Tune's function: the very run that `ppt train` makes, with somebody who listens."""

    def trial(config: dict[str, Any]) -> None:
        if "trial" in config:
            curriculum = planned[config["trial"]].curriculum
        else:
            curriculum = curriculum_here(
                sweep, tune.get_context().get_trial_id(), config, overrides
            )
        if state["uri"]:
            os.environ["MLFLOW_TRACKING_URI"] = state["uri"]
        listener = Reporter(curriculum, tune.report)
        run_curriculum(curriculum, sibling=Sibling(runs, state["parent"], listener))

    # A trial waits; its passes and stages ask for CPUs themselves. Tune wants something reserved.
    return tune.with_resources(trial, tune.PlacementGroupFactory([{"memory": float(2**20)}]))


class Reporter:
    """Tells Tune where a trial is: after each stage, and within later ones after each epoch.

    `pseudo_iou` is that of the best stage so far, as `model_selection` would choose; within the
    first stage there is none, so nothing is told.
    """

    def __init__(self, curriculum: Curriculum, report: Callable[[dict[str, Any]], None]) -> None:
        self._last = {step: stage.num_epochs for _, stage, step in training_runs(curriculum)}
        self._report = report
        self._reached: dict[str, tuple[str, int]] = {}  # training run: its checkpoint and epochs
        self._best: dict[str, Any] = {}

    def epoch(self, step: str, checkpoint: Node, epoch: int) -> None:
        self._reached[step] = checkpoint.digest, epoch
        if self._best and epoch < self._last[step]:  # after the last one the stage is measured
            self._tell(step, measured=False)

    def stage(self, record: StageRecord, score: float) -> None:
        self._reached[record.name] = record.checkpoint.digest, record.num_epochs
        if not self._best or score >= self._best[METRIC]:
            self._best = {METRIC: score, "mIoU": record.metrics["mIoU"], "stage": record.name}
        self._tell(record.name, measured=True)

    def _tell(self, step: str, *, measured: bool) -> None:
        epochs = sum(epochs for _, epochs in self._reached.values())
        where = {TIME: epochs, "step": step, "measured": measured, "reached": dict(self._reached)}
        self._report({**self._best, **where})

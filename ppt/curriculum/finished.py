"""Measure trained stages, and select referents with them."""

from __future__ import annotations

from typing import Literal

from ppt.config import ConfigError, Curriculum
from ppt.config.messages import near
from ppt.curriculum import inputs
from ppt.curriculum.inputs import check_inputs
from ppt.curriculum.measurements import BASELINES, choose_model, measure_baselines, measure_stage
from ppt.curriculum.run import make_inputs, train_stages
from ppt.curriculum.stages import select_referents, training_runs
from ppt.evaluation.protocols import OURS, Protocol
from ppt.steps.runner import OnlyComplete, Repairing, Runner
from ppt.steps.uses import Noting
from ppt.store.nodes import Node
from ppt.tracking.folder import RunFolder
from ppt.tracking.record import RunRecord
from ppt.tracking.results import write_results

Split = Literal["validation", "evaluation"]
"""The splits that have a ground truth."""


def evaluate_curriculum(
    curriculum: Curriculum,
    runner: Runner,
    *,
    stage: str | None = None,
    split: Split = "evaluation",
    protocol: Protocol = OURS,
    folder: RunFolder | None = None,
) -> RunRecord:
    """Measure the baselines and the trained stages, and write the results into the run's folder.

    Args:
        curriculum: the curriculum, as it was trained.
        runner: carries out the measurements. It trains nothing.
        stage: a stage, a round of a stage or a baseline to measure; by default all of them. Only
            the stages up to this one must be trained, and none for a baseline.
        split: the split on which to measure.
        protocol: the protocol by which to measure.
        folder: the run's folder; by default the one in the store.

    Raises:
        ConfigError: if there is no such stage, or if it is not trained.
    """
    wanted = [run for name, _, run in training_runs(curriculum) if stage in (None, name, run)]
    if not wanted and stage not in BASELINES:
        known = [*BASELINES, *(run for _, _, run in training_runs(curriculum))]
        hint = near(str(stage), known)
        raise ConfigError(f"--stage: this curriculum has {', '.join(known)}, got {stage!r}{hint}")
    check_inputs(curriculum)
    folder = folder or RunFolder(runner.store, curriculum.name)
    record = RunRecord(curriculum, folder.path, split=split, protocol=protocol)
    with Noting(Repairing(runner), curriculum.name) as noting:
        _measure(noting, record, wanted)
        if stage is None and record.stages:
            choose_model(noting, record)
        with folder:
            write_results(record)
    return record


def _measure(runner: Runner, record: RunRecord, wanted: list[str]) -> None:
    """Measure the baselines and the trainings of some names."""
    if wanted:
        make_inputs(runner, record, only_complete=True)
    else:
        inputs.prepare(runner, record, inputs.SPLITS)
        inputs.encode(runner, record, inputs.SPLITS)
    measure_baselines(runner, record)
    remaining = list(wanted)
    if not remaining:
        return
    for trained in train_stages(OnlyComplete(runner.store), record):
        if trained.training.name in remaining:
            measure_stage(runner, record, trained)
            remaining.remove(trained.training.name)
        if not remaining:
            return


def select_after(curriculum: Curriculum, runner: Runner, stage: str) -> Node:
    """Run Select with a trained stage and return the labels that it gives H.

    Select starts from the labels that the stage was trained on. Of a stage with several rounds the
    last one selects. Raises ConfigError if there is no such stage, or if it or a stage before it is
    not trained.
    """
    runs = [run for key, _, run in training_runs(curriculum) if stage in (key, run)]
    if not runs:
        known = [run for _, _, run in training_runs(curriculum)]
        hint = near(stage, known)
        raise ConfigError(
            f"--after: this curriculum trains {', '.join(known)}, got {stage!r}{hint}"
        )
    check_inputs(curriculum)
    record = RunRecord(curriculum, RunFolder(runner.store, curriculum.name).path)
    with Noting(Repairing(runner), curriculum.name) as noting:
        make_inputs(noting, record, only_complete=True)
        trained = next(
            trained
            for trained in train_stages(OnlyComplete(runner.store), record)
            if trained.training.name == runs[-1]
        )
        return select_referents(noting, record, trained.h, trained.checkpoint)

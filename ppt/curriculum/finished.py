"""Measure trained stages, and select referents with them."""

from __future__ import annotations

from typing import Literal

from ppt.config import ConfigError, Curriculum
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
) -> RunRecord:
    """Measure the baselines and the trained stages, and write the results into the run's folder.

    Args:
        curriculum: the curriculum, as it was trained.
        runner: carries out the measurements. It trains nothing.
        stage: a stage, a round of a stage or a baseline to measure; by default all of them. Only
            the stages up to this one must be trained, and none for a baseline.
        split: the split on which to measure.
        protocol: the protocol by which to measure.

    Raises:
        ConfigError: if there is no such stage, or if it is not trained.
    """
    wanted = [run for name, _, run in training_runs(curriculum) if stage in (None, name, run)]
    if not wanted and stage not in BASELINES:
        known = ", ".join([*BASELINES, *(run for _, _, run in training_runs(curriculum))])
        raise ConfigError(f"--stage: this curriculum has {known}, got {stage!r}")
    check_inputs(curriculum)
    runner = Noting(Repairing(runner), curriculum.name)
    folder = RunFolder(runner.store, curriculum.name)
    record = RunRecord(curriculum, folder.path, split=split, protocol=protocol)
    if wanted:
        make_inputs(runner, record, only_complete=True)
    else:
        inputs.prepare(runner, record, inputs.SPLITS)
        inputs.encode(runner, record, inputs.SPLITS)
    measure_baselines(runner, record)
    remaining = list(wanted)
    if remaining:
        for trained in train_stages(OnlyComplete(runner.store), record):
            if trained.training.name in remaining:
                measure_stage(runner, record, trained)
                remaining.remove(trained.training.name)
            if not remaining:
                break
    if stage is None and record.stages:
        choose_model(runner, record)
    with folder:
        write_results(record)
    return record


def select_after(curriculum: Curriculum, runner: Runner, stage: str) -> Node:
    """Run Select with a trained stage and return the labels that it gives H.

    Select starts from the labels that the stage was trained on. Of a stage with several rounds the
    last one selects. Raises ConfigError if there is no such stage, or if it or a stage before it is
    not trained.
    """
    runs = [run for key, _, run in training_runs(curriculum) if stage in (key, run)]
    if not runs:
        known = ", ".join(run for _, _, run in training_runs(curriculum))
        raise ConfigError(f"--after: this curriculum trains {known}, got {stage!r}")
    check_inputs(curriculum)
    runner = Noting(Repairing(runner), curriculum.name)
    record = RunRecord(curriculum, RunFolder(runner.store, curriculum.name).path)
    make_inputs(runner, record, only_complete=True)
    trained = next(
        trained
        for trained in train_stages(OnlyComplete(runner.store), record)
        if trained.training.name == runs[-1]
    )
    return select_referents(runner, record, trained.h, trained.checkpoint)

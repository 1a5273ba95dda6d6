"""The driver, which runs a curriculum from raw pictures to a trained model and its report.

Every step names its result by a digest and skips what exists, so that running a curriculum again
continues where it stopped. The runner decides how the steps are carried out.

In a notebook a curriculum runs without Ray::

    curriculum = load_curriculum("curricula/quickstart.yaml")
    runner = LocalRunner(Store(curriculum.store), curriculum.resources)
    record = run_curriculum(curriculum, runner)
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from ppt.batches.sampler import LabelTable
from ppt.config import ConfigError, Curriculum, Stage
from ppt.config.messages import near
from ppt.curriculum import inputs
from ppt.curriculum.inputs import DATA, SPLITS, TRAINING_DATA, check_inputs
from ppt.curriculum.measurements import choose_model, measure_baselines, measure_stage
from ppt.curriculum.sibling import Sibling
from ppt.curriculum.stages import (
    Listening,
    OnEpoch,
    TrainedStage,
    select_referents,
    tables_of,
    training_runs,
    unheard,
)
from ppt.report import write_report
from ppt.report.gallery import stage_panels
from ppt.steps.progress import print_waiting, print_warning
from ppt.steps.runner import COMMANDS, Again, OnlyComplete, Repairing, Runner
from ppt.steps.uses import Noting
from ppt.store.disk import unwritable
from ppt.store.locks import locked
from ppt.store.nodes import Node, Store
from ppt.tracking.folder import RunFolder
from ppt.tracking.mlflow_runs import Tracker, check_tracking
from ppt.tracking.record import RunRecord
from ppt.tracking.results import write_results
from ppt.tracking.summary import summarise, warnings_of, write_curriculum, write_summary
from ppt.training.stage import EpochMetrics, StageTraining

LastStep = Literal["prepare", "encode", "label", "train"]
"""The last step of a run; the commands have the same names."""


def run_curriculum(
    curriculum: Curriculum,
    runner: Runner,
    until: LastStep = "train",
    *,
    train: bool = True,
    sibling: Sibling | None = None,
    folder: RunFolder | None = None,
) -> RunRecord:
    """Run the steps of a curriculum up to `until`; what is in the store is not made again.

    Args:
        curriculum: the curriculum.
        runner: carries out the steps and trainings.
        until: the last step to run.
        train: if false, a stage that is not trained raises ConfigError instead of starting hours of
            work.
        sibling: the group to which the run belongs, for example a sweep.
        folder: the run's folder; by default the one in the store.

    Returns:
        The record of the run.

    Raises:
        ConfigError: if the curriculum cannot be run as it is.
    """
    folder = folder or RunFolder(runner.store, curriculum.name)
    check_inputs(curriculum)
    if train:
        check_outputs(runner.store, folder.path if until == "train" else None)
        for warning in warnings_of(curriculum):
            print_warning(warning)
    record = RunRecord(curriculum, folder.path)
    anew = isinstance(runner, Again)
    with Noting(Repairing(runner), curriculum.name, alone=anew) as noting:
        if until == "train":
            _run(noting, record, folder, sibling, train=train, anew=anew)
        else:
            _prepare_and_label(noting, record, until)
    return record


def _run(
    runner: Runner,
    record: RunRecord,
    folder: RunFolder,
    sibling: Sibling | None,
    *,
    train: bool,
    anew: bool,
) -> None:
    """Run a curriculum to its end; the arguments are those of `run_curriculum`."""
    trainer = runner if train else OnlyComplete(runner.store)
    make_inputs(runner, record, only_complete=not train)
    if not train:  # nothing of the run may be written unless all trainings are there
        for _ in train_stages(trainer, replace(record, selected=[])):
            pass
    parent, name = sibling.parent if sibling else None, record.curriculum.name
    with (
        locked(runner.store, f"run-{name}", partial(print_waiting, name)),
        folder,
        Tracker(record, parent, anew=anew, tell=print_warning) as tracker,
    ):
        if train:
            write_curriculum(record)
        tracker.log_data()
        with _timed(record, "baselines"):
            measure_baselines(runner, record)
        for trained in train_stages(trainer, record, _listening(tracker, runner, sibling)):
            stage = measure_stage(runner, record, trained)
            tracker.finish_stage(stage, partial(stage_panels, record, stage))
            folder.publish()
            if sibling:
                chosen = choose_model(runner, record)
                tracker.choose(chosen)
                sibling.listener.stage(stage, chosen.scores.get(stage.name, math.nan))
        if record.stages:
            with _timed(record, "choose"):
                tracker.choose(choose_model(runner, record))
        _finish(record, tracker)


def check_outputs(store: Store, folder: str | None) -> None:
    """Check that the store can be written to, before hours of work.

    With the run's `folder`, this and MLflow are checked too. Raises ConfigError, which says what to
    do.
    """
    if fault := unwritable(store.fs, store.path):
        raise ConfigError(f"store: {store.root!r} cannot be written to ({fault}): set another one")
    if folder is not None:
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise ConfigError(
                f"name: the run's folder cannot be made, a file or a broken link is at {folder!r}: "
                "remove it, or set another name"
            )
        check_tracking(folder)


def run_curriculum_again(curriculum: Curriculum, runner: Runner, name: str) -> RunRecord:
    """Run a whole curriculum, but make one step or stage and all that follows from it anew.

    `name` is a stage, a round of a stage or a command, see `ppt.steps.runner.Again`. Raises
    ConfigError for any other name.
    """
    known = dict.fromkeys(n for key, _, run in training_runs(curriculum) for n in (key, run))
    if name not in (*known, *COMMANDS):
        names = [*COMMANDS, *known]
        hint = near(name, names)
        raise ConfigError(f"--again: this curriculum has {', '.join(names)}, got {name!r}{hint}")
    return run_curriculum(curriculum, Again(runner, name))


def train_stages(
    runner: Runner, record: RunRecord, listening: Listening = unheard
) -> Iterator[TrainedStage]:
    """Train the stages of the curriculum in their order (Eq. 5 to 7).

    Each training is yielded when it is done, and the next one starts when the caller continues.
    `listening` opens the function that is called with the losses of each epoch.
    """
    tables = inputs.training_tables(record)
    checkpoint: Node | None = None
    for name, stage, run_name in training_runs(record.curriculum):
        selected = None
        if stage.select:
            assert checkpoint is not None  # the configuration forbids Select in the first stage
            selected = select_referents(runner, record, tables["h"], checkpoint)
            tables["h"] = replace(tables["h"], labels=selected)
        training = _training(record.curriculum, run_name, stage, tables, checkpoint)
        with listening(training) as on_epoch:
            checkpoint = runner.train(training, on_epoch)
        yield TrainedStage(name, training, checkpoint, selected, tables["h"])


def first_training(record: RunRecord) -> StageTraining:
    """Return the first training of a run whose labels are made."""
    _, stage, run_name = next(training_runs(record.curriculum))
    return _training(record.curriculum, run_name, stage, inputs.training_tables(record), None)


def _training(
    curriculum: Curriculum,
    name: str,
    stage: Stage,
    tables: dict[str, LabelTable],
    initial: Node | None,
) -> StageTraining:
    return StageTraining(
        name=name,
        stage=stage,
        training=curriculum.training,
        model=curriculum.model,
        tables=tables_of(stage, tables),
        initial=initial,
        seed=curriculum.seed,
        resources=curriculum.resources,
    )


def make_inputs(runner: Runner, record: RunRecord, *, only_complete: bool = False) -> None:
    """Prepare, encode, label and synthesise for all data sets.

    With `only_complete`, the inputs of the trainings must be in the store already. Otherwise all
    data sets are prepared first, so that unusable ones are found before hours of work.

    Raises:
        ConfigError: if nothing is left of a data set, or of a source that a stage trains on.
    """
    trainer = OnlyComplete(runner.store) if only_complete else runner
    with _timed(record, "prepare"):
        inputs.prepare(trainer, record, TRAINING_DATA if only_complete else DATA)
    with _timed(record, "encode"):
        inputs.encode(trainer, record, TRAINING_DATA)
    with _timed(record, "label"):
        inputs.label(trainer, record)
    with _timed(record, "synthesise"):
        inputs.synthesise(trainer, record)
    inputs.check_sources(record)
    if only_complete:
        with _timed(record, "prepare"):
            inputs.prepare(runner, record, SPLITS)
    with _timed(record, "encode"):
        inputs.encode(runner, record, SPLITS)


def _prepare_and_label(runner: Runner, record: RunRecord, until: LastStep) -> None:
    """Carry out the steps before training, up to `until`."""
    with _timed(record, "prepare"):
        inputs.prepare(runner, record)
    if until != "prepare":
        with _timed(record, "encode"):
            inputs.encode(runner, record)
    if until == "label":
        with _timed(record, "label"):
            inputs.label(runner, record)
        with _timed(record, "synthesise"):
            inputs.synthesise(runner, record)


def _listening(tracker: Tracker, runner: Runner, sibling: Sibling | None) -> Listening:
    """Return a `Listening` that passes the losses to the tracker, and to the sibling's listener."""

    @contextmanager
    def listening(training: StageTraining) -> Iterator[OnEpoch]:
        with tracker.stage(training.name) as log:

            def on_epoch(losses: EpochMetrics) -> None:
                log(losses)
                if sibling:
                    node = training.node(runner.store)
                    sibling.listener.epoch(training.name, node, int(losses["epoch"]))

            yield on_epoch

    return listening


def _finish(record: RunRecord, tracker: Tracker) -> None:
    """Write results, summary and page into the run's folder, and log the last two to MLflow."""
    write_results(record)
    folder = Path(record.folder)
    summary = write_summary(summarise(record), folder / "summary.json")
    record.report = write_report(record, folder / "report.html")
    tracker.log_files([summary, record.report])


@contextmanager
def _timed(record: RunRecord, step: str) -> Iterator[None]:
    """Add the duration of the block to the record's seconds of a step."""
    started = time.monotonic()
    yield
    seconds = record.seconds.get(step, 0.0) + time.monotonic() - started
    record.seconds[step] = round(seconds, 1)

"""A sweep by Ray Tune, from its planned trials to its record."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from ppt.config import ConfigError
from ppt.curriculum.inputs import check_inputs
from ppt.curriculum.run import run_curriculum
from ppt.curriculum.sibling import Sibling
from ppt.distributed.cluster import connected, runs_at_once
from ppt.distributed.ray_runner import ray_runner
from ppt.experiments.sweep import Range, Sweep
from ppt.experiments.sweep_record import record_of, tracked, write_record
from ppt.experiments.sweep_results import SweepRecord
from ppt.experiments.trials import METRIC, TIME, Planned, Reporter, curriculum_here, plan_trials
from ppt.steps.progress import console, progress_bar
from ppt.store.nodes import Store
from ppt.tracking.folder import RunFolder


def run_sweep(sweep: Sweep, overrides: Sequence[str] = (), *, resume: bool = False) -> SweepRecord:
    """Run every trial of a sweep, or with `resume` the trials that an interrupted sweep left.

    `overrides` change the curriculum of all trials. Raises ConfigError, before any work begins, if
    the curriculum of a trial is invalid or if there is no sweep to resume.
    """
    if sweep.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("search: optuna is not installed: pip install 'ppt-ris[optuna]'")
    planned = plan_trials(sweep, overrides)
    example = planned[0].curriculum
    for trial in planned:
        check_inputs(trial.curriculum)
    store = Store(example.store)
    if resume and not store.fs.exists(f"{_tune_storage(store)}/{sweep.name}/tuner.pkl"):
        raise ConfigError(f"--resume: sweep {sweep.name!r} has not begun in {store.root!r}")
    folder = RunFolder(store, sweep.name)
    # These settings of Tune exist only as environment variables. Trials keep the working directory,
    # because paths may be relative. Tune neither handles Ctrl-C nor writes logs or a table.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Without the dashboard, Ray does not release the resources of a trial that is stopped.
    with connected(example.resources, dashboard=True), folder:
        places = min(runs_at_once(trial.curriculum.resources) for trial in planned)
        runs = max(1, min(sweep.max_concurrent, places))
        if runs < sweep.max_concurrent:
            console.print(f"{runs} at a time: the cluster has no room for {sweep.max_concurrent}")
        with tracked(sweep, folder, overrides, resume=resume) as state:
            train = trainable(sweep, overrides, planned, runs, state)
            tuner = _tuner(sweep, planned, runs, store, train, resume=resume)
            total = None if sweep.search == "optuna" else sum(p.num_epochs for p in planned)
            with _followed(total):
                results = tuner.fit()
            ended = [results[i] for i in range(len(results))]
            record = record_of(sweep, overrides, planned, ended, store, folder, state)
            write_record(record, state)
    return record


def _tune_storage(store: Store) -> str:
    """Return the folder of Tune's state, which has a subfolder for each sweep."""
    return f"{store.path}/ray-tune"


def _tuner(
    sweep: Sweep,
    planned: Sequence[Planned],
    runs: int,
    store: Store,
    trial: Any,
    *,
    resume: bool,
) -> tune.Tuner:
    """Return Tune's tuner for a new sweep, or with `resume` the one of an interrupted sweep."""
    storage, filesystem = _tune_storage(store), store.arrow_filesystem()
    path = f"{storage}/{sweep.name}"
    if resume:
        return tune.Tuner.restore(
            path,
            trial,
            resume_unfinished=True,
            resume_errored=True,
            storage_filesystem=filesystem,
        )
    if store.fs.exists(path):
        # This is Tune's state of an earlier sweep of this name; no results are lost.
        store.fs.rm(path, recursive=True)
    searched = sweep.search == "optuna"
    space = {"trial": tune.grid_search(list(range(len(planned))))}
    longest = max(p.num_epochs for p in planned)
    # No trial reaches `max_t`, so that Tune does not stop one that is about to end by itself.
    scheduler = ASHAScheduler(time_attr=TIME, max_t=longest + 1, grace_period=1)
    return tune.Tuner(
        trial,
        param_space=_tune_space(sweep) if searched else space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            search_alg=_optuna(sweep) if searched else None,
            scheduler=scheduler if sweep.scheduler == "asha" else None,
            num_samples=sweep.num_samples if searched else 1,
            max_concurrent_trials=runs,
        ),
        run_config=tune.RunConfig(
            name=sweep.name,
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(
                max_failures=planned[0].curriculum.resources.max_failures
            ),
            callbacks=[_Follower()],
            verbose=0,
        ),
    )


def _optuna(sweep: Sweep) -> Any:
    from ray.tune.search.optuna import OptunaSearch  # optuna is an optional dependency

    return OptunaSearch(seed=sweep.seed)


def _tune_space(sweep: Sweep) -> dict[str, Any]:
    return {
        key: _distribution(values) if isinstance(values, Range) else tune.choice(values)
        for key, values in sweep.space.items()
    }


def _distribution(values: Range) -> Any:
    if values.whole:
        draw = tune.lograndint if values.log else tune.randint
        return draw(int(values.min), int(values.max) + 1)
    return (tune.loguniform if values.log else tune.uniform)(values.min, values.max)


def trainable(
    sweep: Sweep,
    overrides: Sequence[str],
    planned: Sequence[Planned],
    runs: int,
    state: Mapping[str, Any],
) -> Any:
    """Return the function that Tune calls for each trial.

    A trial is the run that `ppt train` makes, with a `Reporter` that reports its progress to Tune.

    Args:
        sweep: the sweep.
        overrides: changes of the curriculum of every trial, such as "seed=7".
        planned: the trials of a grid or a random search, by the number that Tune's configuration of
            a trial names. For optuna, which proposes values during the search, they are not used.
        runs: the number of trials that share the cluster at the same time.
        state: the sweep's MLflow tracking server (`uri`; None for the one of the run's own folder)
            and the id of its MLflow run (`parent`).
    """

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
        with ray_runner(curriculum, runs=runs) as runner:
            run_curriculum(curriculum, runner, sibling=Sibling(state["parent"], listener))

    # The process of a trial only waits: its steps and trainings reserve their own CPUs. Tune needs
    # some reservation for each trial, which is a little memory here.
    return tune.with_resources(trial, tune.PlacementGroupFactory([{"memory": float(2**20)}]))


_hear: list[Callable[[str, Mapping[str, Any]], None]] = []
"""The functions that are called with each result of a trial.

They are kept in the module because Tune pickles its callbacks and restores them when it resumes.
"""


def _label(trial: str, config: Mapping[str, Any]) -> str:
    """Return the name of a trial for display."""
    return f"{config['trial']:02d}" if "trial" in config else trial


class _Follower(tune.Callback):
    """A callback that tells the user when a trial begins, and passes each result to `_hear`."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        label = _label(trial.trial_id, trial.config)
        console.print(f"trial {label} has begun", highlight=False)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for hear in _hear:
            hear(trial.trial_id, result)


@contextmanager
def _followed(total: int | None) -> Iterator[None]:
    """Show a bar of the trials' epochs, and print a line for each training that is measured.

    Epochs count for every trial that uses them, even if another trial trained them.
    """
    epochs: dict[str, int] = {}
    with progress_bar("sweep (epochs)", total) as advance:

        def hear(trial: str, result: Mapping[str, Any]) -> None:
            more = result[TIME] - epochs.get(trial, 0)
            if more > 0:  # a restarted trial repeats its reports
                advance(more)
                epochs[trial] = result[TIME]
            if result["measured"]:
                label = _label(trial, result["config"])
                best = f"pseudo-IoU {result[METRIC]:.1f} ({result['stage']})"
                console.print(f"trial {label}: {result['training']}, {best}", highlight=False)

        _hear.append(hear)
        try:
            yield
        finally:
            _hear.remove(hear)

"""A sweep, from its trials before the search to its record."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from ppt.config import ConfigError
from ppt.pipeline.cluster import connected, runs_at_once
from ppt.pipeline.curriculum import check_inputs
from ppt.pipeline.folder import RunFolder
from ppt.pipeline.progress import console, progress_bar
from ppt.pipeline.sweep.config import Range, Sweep
from ppt.pipeline.sweep.record import record_of, tracked, write_record
from ppt.pipeline.sweep.results import SweepRecord
from ppt.pipeline.sweep.trials import METRIC, TIME, Planned, plan_trials, trainable
from ppt.store import Store


def run_sweep(sweep: Sweep, overrides: Sequence[str] = (), *, resume: bool = False) -> SweepRecord:
    """Run every trial, or with `resume` those that an interrupted sweep has left.

    `overrides` change the curriculum of all trials. ConfigError before anything starts for a value
    that the curriculum cannot have, and for a sweep that is not there to be resumed.
    """
    if sweep.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("search: optuna is not installed: pip install 'ppt-ris[optuna]'")
    planned = plan_trials(sweep, overrides)
    example = planned[0].curriculum
    check_inputs(example)
    store = Store(example.store)
    if resume and not store.fs.exists(f"{_tune_storage(store)}/{sweep.name}/tuner.pkl"):
        raise ConfigError(f"--resume: sweep {sweep.name!r} has not begun in {store.root!r}")
    folder = RunFolder(store, sweep.name)
    # Of Tune's settings these are only to be had by environment: trials keep the working directory
    # (paths may be relative), Ctrl-C is ours, no logger writes what nobody reads, no second table.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Without the dashboard Ray does not give back what a trial that is stopped has reserved.
    with connected(example.resources, dashboard=True), folder:
        places = min(runs_at_once(trial.curriculum.resources) for trial in planned)
        runs = max(1, min(sweep.max_concurrent, places))
        if runs < sweep.max_concurrent:
            console.print(f"{runs} at a time: the cluster has no room for {sweep.max_concurrent}")
        with tracked(sweep, folder, overrides, resume=resume) as state:
            trial = trainable(sweep, overrides, planned, runs, state)
            tuner = _tuner(sweep, planned, runs, store, trial, resume=resume)
            total = None if sweep.search == "optuna" else sum(p.num_epochs for p in planned)
            with _followed(total):
                results = tuner.fit()
            record = record_of(sweep, overrides, planned, results, store, folder, state)
            write_record(record, state)
    return record


def _tune_storage(store: Store) -> str:
    """Where Tune keeps its notes, a folder for each sweep."""
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
        store.fs.rm(path, recursive=True)  # of an earlier sweep of this name: its notes, no results
    searched = sweep.search == "optuna"
    space = {"trial": tune.grid_search(list(range(len(planned))))}
    longest = max(p.num_epochs for p in planned)
    # Above what a trial can reach: Tune must not end one that is about to end by itself.
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
    from ray.tune.search.optuna import OptunaSearch  # an extra

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


_hear: list[Callable[[str, Mapping[str, Any]], None]] = []
"""Tune pickles its callbacks and has them back when it resumes: what listens now is here."""


def _label(trial: str, config: Mapping[str, Any]) -> str:
    return f"{config['trial']:02d}" if "trial" in config else trial


class _Follower(tune.Callback):
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
    """A bar of the trials' epochs, whoever trained them, and a line for each stage measured."""
    epochs: dict[str, int] = {}
    with progress_bar("sweep (epochs)", total) as advance:

        def hear(trial: str, result: Mapping[str, Any]) -> None:
            more = result[TIME] - epochs.get(trial, 0)
            if more > 0:  # a trial that begins again tells what it told before
                advance(more)
                epochs[trial] = result[TIME]
            if result["measured"]:
                label = _label(trial, result["config"])
                best = f"pseudo-IoU {result[METRIC]:.1f} ({result['stage']})"
                console.print(f"trial {label}: {result['step']}, {best}", highlight=False)

        _hear.append(hear)
        try:
            yield
        finally:
            _hear.remove(hear)

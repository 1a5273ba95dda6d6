"""sweep: Ray Tune over the keys of a curriculum. A trial is a run like any other.

Trials meet in the store: what their curricula share has one digest, one of them makes it, the
others wait for it (`claims`). So a sweep trains every stage of the tree of its trials once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from ppt.config import ConfigError, Curriculum
from ppt.pipeline.cluster import connected, runs_at_once
from ppt.pipeline.curriculum import check_inputs, run_curriculum, training_runs
from ppt.pipeline.folder import RunFolder
from ppt.pipeline.progress import console, progress_bar
from ppt.pipeline.record import StageRecord, stage_epochs
from ppt.pipeline.sibling import Sibling
from ppt.pipeline.sweep_config import (
    Range,
    Sweep,
    Values,
    curriculum_of,
    trials_of,
)
from ppt.pipeline.sweep_results import SUMMARY, SweepRecord, Trial, write_sweep
from ppt.pipeline.tracking import (
    Run,
    end_running_below,
    experiment,
    flatten,
    quiet_client,
    tracking_uri,
)
from ppt.pipeline.training import epochs_trained
from ppt.store import Node, Store, digest_of

METRIC, TIME = "pseudo_iou", "epochs"


def run_sweep(sweep: Sweep, overrides: Sequence[str] = (), *, resume: bool = False) -> SweepRecord:
    """Run every trial, or with `resume` those that an interrupted sweep has left.

    `overrides` change the curriculum of all trials. ConfigError before anything starts for a value
    that the curriculum cannot have, and for a sweep that is not there to be resumed.
    """
    if sweep.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("search: optuna is not installed: pip install 'ppt-ris[optuna]'")
    planned = _planned(sweep, overrides)
    example = planned[0].curriculum
    check_inputs(example)
    store = Store(example.store)
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
        with _tracked(sweep, folder, overrides, resume=resume) as state:
            trial = _trainable(sweep, overrides, planned, runs, state)
            tuner = _tuner(sweep, planned, runs, store, trial, resume=resume)
            total = None if sweep.search == "optuna" else sum(p.num_epochs for p in planned)
            with _followed(total):
                results = tuner.fit()
            record = _record(sweep, overrides, planned, results, store, folder, state)
            _finish(record, state)
    return record


# ---------------------------------------------------------------- trials


@dataclass(frozen=True)
class _Planned:
    """A trial that is known before the search; for optuna one that stands for all."""

    name: str
    values: Values
    curriculum: Curriculum

    @property
    def num_epochs(self) -> int:
        return _num_epochs(self.curriculum)


def _num_epochs(curriculum: Curriculum) -> int:
    return sum(stage.num_epochs for _, stage, _ in training_runs(curriculum))


def _planned(sweep: Sweep, overrides: Sequence[str]) -> list[_Planned]:
    """Every trial with its curriculum; ConfigError for one that cannot be."""
    trials = trials_of(sweep) if sweep.search != "optuna" else _corners(sweep)
    return [
        _Planned(f"{i:02d}", values, _curriculum(sweep, f"{i:02d}", values, overrides))
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


def _curriculum(sweep: Sweep, name: str, values: Values, overrides: Sequence[str]) -> Curriculum:
    curriculum = curriculum_of(sweep, name, values, overrides)
    store = Store(curriculum.store)
    # A trial may run on another machine, or elsewhere on this one.
    return curriculum.model_copy(update={"store": store.path}) if store.is_local else curriculum


def _trainable(
    sweep: Sweep,
    overrides: Sequence[str],
    planned: Sequence[_Planned],
    runs: int,
    state: Mapping[str, Any],
) -> Any:
    """Tune's function: the very run that `ppt train` makes, with somebody who listens."""

    def trial(config: dict[str, Any]) -> None:
        if "trial" in config:
            curriculum = planned[config["trial"]].curriculum
        else:
            curriculum = _curriculum(sweep, tune.get_context().get_trial_id(), config, overrides)
        if state["uri"]:
            os.environ["MLFLOW_TRACKING_URI"] = state["uri"]
        listener = _Reporter(curriculum, tune.report)
        run_curriculum(curriculum, sibling=Sibling(runs, state["parent"], listener))

    # A trial waits; its passes and stages ask for CPUs themselves. Tune wants something reserved.
    return tune.with_resources(trial, tune.PlacementGroupFactory([{"memory": float(2**20)}]))


class _Reporter:
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


# ---------------------------------------------------------------- Tune


def _tuner(
    sweep: Sweep,
    planned: Sequence[_Planned],
    runs: int,
    store: Store,
    trial: Any,
    *,
    resume: bool,
) -> tune.Tuner:
    storage, filesystem = f"{store.path}/ray-tune", store.arrow_filesystem()
    path = f"{storage}/{sweep.name}"
    if resume:
        if not store.fs.exists(f"{path}/tuner.pkl"):
            raise ConfigError(f"--resume: sweep {sweep.name!r} has not begun in {store.root!r}")
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


class _Follower(tune.Callback):
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
                name = result["config"].get("trial", trial)
                label = f"{name:02d}" if isinstance(name, int) else name
                best = f"pseudo-IoU {result[METRIC]:.1f} ({result['stage']})"
                console.print(f"trial {label}: {result['step']}, {best}", highlight=False)

        _hear.append(hear)
        try:
            yield
        finally:
            _hear.remove(hear)


# ---------------------------------------------------------------- what a sweep leaves


@contextmanager
def _tracked(
    sweep: Sweep, folder: RunFolder, overrides: Sequence[str], *, resume: bool
) -> Iterator[dict[str, Any]]:
    """The sweep's MLflow run and what `--resume` must know, as it stands in sweep.json.

    Trials write to the same server. Where that is a file, every machine must see it: with a store
    behind a URL each trial keeps its own unless MLFLOW_TRACKING_URI says otherwise.
    """
    path = Path(folder.path).resolve()
    path.mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(path)
    client = quiet_client(uri)
    config = digest_of([sweep.model_dump(mode="json", exclude={"max_concurrent"}), list(overrides)])
    if resume:
        state = _state(path, config, sweep)
        client.update_run(state["parent"], status="RUNNING")
    else:
        tags = {"ppt.kind": "sweep"}
        made = client.create_run(experiment(client, uri), run_name=sweep.name, tags=tags)
        shared = os.environ.get("MLFLOW_TRACKING_URI") or folder.store.is_local
        state = {
            "name": sweep.name,
            "config": config,
            "started": time.time(),
            "parent": made.info.run_id,
            "uri": uri if shared else None,
        }
        (path / SUMMARY).write_text(json.dumps(state, indent=2))
        folder.publish()
    run = Run(client, state["parent"])
    params = flatten(sweep.model_dump(mode="json", exclude={"space"}))
    run.log_params(params | {f"space.{key}": values for key, values in sweep.space.items()})
    try:
        yield state
    except BaseException as error:
        run.end(error)
        raise
    run.end(None)


def _state(path: Path, config: str, sweep: Sweep) -> dict[str, Any]:
    try:
        state = json.loads((path / SUMMARY).read_text())
    except FileNotFoundError:
        raise ConfigError(f"--resume: sweep {sweep.name!r} has not begun in {path}") from None
    if state["config"] != config:
        raise ConfigError(
            f"--resume: sweep {sweep.name!r} began with another file or overrides: give those "
            "again, or start anew without --resume (what is trained is found)"
        )
    return {key: state[key] for key in ("name", "config", "started", "parent", "uri")}


def _record(
    sweep: Sweep,
    overrides: Sequence[str],
    planned: Sequence[_Planned],
    results: tune.ResultGrid,
    store: Store,
    folder: RunFolder,
    state: Mapping[str, Any],
) -> SweepRecord:
    ended = (results[i] for i in range(len(results)))
    trials = sorted(
        (_trial(sweep, overrides, planned, result) for result in ended), key=lambda t: t.name
    )
    pairs = sorted((pair for trial in trials for pair in trial.reached.values()), key=_epochs)
    distinct, without_sharing = stage_epochs(pairs)
    checkpoints = [Node(store, "checkpoints", digest, {}) for digest in dict(pairs)]
    trained = sum(epochs_trained(node, since=state["started"]) for node in checkpoints)
    return SweepRecord(sweep, folder.path, trials, trained, distinct, without_sharing)


def _epochs(pair: tuple[str, int]) -> int:
    return pair[1]


def _trial(
    sweep: Sweep, overrides: Sequence[str], planned: Sequence[_Planned], result: Any
) -> Trial:
    """A trial as it ended; Tune's last report of it says how far it came."""
    told: dict[str, Any] = result.metrics or {}
    config: dict[str, Any] = result.config
    if "trial" in config:
        plan = planned[config["trial"]]
        name, values, num_epochs = plan.name, plan.values, plan.num_epochs
    else:
        name, values = told.get("trial_id", "?"), config
        num_epochs = _num_epochs(_curriculum(sweep, "any", values, overrides))
    epochs = told.get(TIME, 0)
    return Trial(
        name=name,
        values=values,
        status="failed" if result.error else "done" if epochs == num_epochs else "stopped",
        pseudo_iou=told.get(METRIC, math.nan),
        mIoU=told.get("mIoU", math.nan),
        stage=told.get("stage"),
        epochs=epochs,
        num_epochs=num_epochs,
        reached={step: (digest, n) for step, (digest, n) in told.get("reached", {}).items()},
        seconds=round(told.get("time_total_s", 0.0), 1),
        error=str(result.error).strip().splitlines()[-1] if result.error else None,
    )


def _finish(record: SweepRecord, state: Mapping[str, Any]) -> None:
    """The sweep's files, in its folder and in MLflow; the figures in MLflow."""
    client = quiet_client(tracking_uri(record.folder))
    end_running_below(client, state["parent"])  # Tune stops a trial by its process
    for path in write_sweep(record, state):
        client.log_artifact(state["parent"], str(path))
    figures = {name: getattr(record, name) for name in ("trained", "distinct", "without_sharing")}
    run = Run(client, state["parent"])
    run.log_metrics(figures, step=0, prefix="stage_epochs/")
    for by, best in (("pseudo_iou", record.best_weak), ("truth", record.best_truth)):
        if best:
            facts = dataclasses.asdict(best)
            run.set_tags({f"best_by_{by}": best.name})
            run.log_metrics(
                {k: facts[k] for k in (METRIC, "mIoU")}, step=0, prefix=f"best_by_{by}/"
            )

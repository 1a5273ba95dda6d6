"""The record of a sweep: its MLflow run, its state for `--resume`, and its trials' results."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppt.config import ConfigError
from ppt.experiments.sweep import Sweep
from ppt.experiments.sweep_results import SUMMARY, SweepRecord, Trial, write_sweep
from ppt.experiments.trials import METRIC, TIME, Planned, curriculum_here, num_epochs_of
from ppt.store.disk import check_writable, replacing
from ppt.store.nodes import Node, Store, digest_of
from ppt.tracking.folder import RunFolder
from ppt.tracking.mlflow_runs import (
    Run,
    end_running_below,
    experiment,
    flatten,
    needed,
    quiet_client,
    tracking_uri,
)
from ppt.tracking.record import stage_epochs
from ppt.training.stage import epochs_trained

if TYPE_CHECKING:
    from mlflow import MlflowClient


@contextmanager
def tracked(
    sweep: Sweep, folder: RunFolder, overrides: Sequence[str], *, resume: bool
) -> Iterator[dict[str, Any]]:
    """Open the sweep's MLflow run, and yield the state that `--resume` needs, as in sweep.json.

    The trials log to the same tracking server. If that is a file, every machine must see it. With a
    store behind a URL each trial therefore logs to a file of its own, unless MLFLOW_TRACKING_URI
    names a server.

    Raises ConfigError if `resume` is set and the sweep has not begun, or began with another file or
    other overrides.
    """
    path = Path(folder.path).resolve()
    check_writable(path, "store")
    uri = tracking_uri(path)
    config = digest_of([sweep.model_dump(mode="json", exclude={"max_concurrent"}), list(overrides)])
    if resume:
        state = _state(path, config, sweep)
        with needed(uri):
            client = quiet_client(uri)
            client.update_run(state["parent"], status="RUNNING")
    else:
        tags = {"ppt.kind": "sweep"}
        with needed(uri):
            client = quiet_client(uri)
            made = client.create_run(experiment(client, uri), run_name=sweep.name, tags=tags)
        shared = os.environ.get("MLFLOW_TRACKING_URI") or folder.store.is_local
        state = {
            "name": sweep.name,
            "config": config,
            "started": time.time(),
            "parent": made.info.run_id,
            "uri": uri if shared else None,
            "overrides": list(overrides),
        }
        with replacing(path / SUMMARY) as temporary:
            temporary.write_text(json.dumps(state, indent=2))
        folder.publish()
    with needed(uri):
        run = Run(client, state["parent"])
    unused = {"num_samples", "seed"} if sweep.search == "grid" else set()
    params = flatten(sweep.model_dump(mode="json", exclude={"space", *unused}))
    params["overrides"] = " ".join(overrides)
    run.log_params(params | {f"space.{key}": values for key, values in sweep.space.items()})
    try:
        yield state
    except BaseException as error:
        end_running_below(client, state["parent"])
        run.end(error)
        raise
    run.end(None)


def _state(path: Path, config: str, sweep: Sweep) -> dict[str, Any]:
    """Read the state from sweep.json, and check that the configuration is the same."""
    try:
        state = json.loads((path / SUMMARY).read_text())
    except FileNotFoundError:
        raise ConfigError(f"--resume: sweep {sweep.name!r} has not begun in {path}") from None
    except ValueError as error:
        raise ConfigError(
            f"--resume: {path / SUMMARY} is cut short or damaged ({error}): start anew without "
            "--resume (what is trained is found)"
        ) from None
    if state["config"] != config:
        before = " ".join(state["overrides"]) or "none"
        raise ConfigError(
            f"--resume: sweep {sweep.name!r} began with another file or overrides ({before}): give "
            "those again, or start anew without --resume (what is trained is found)"
        )
    keys = ("name", "config", "started", "parent", "uri", "overrides")
    return {key: state[key] for key in keys}


def record_of(
    sweep: Sweep,
    overrides: Sequence[str],
    planned: Sequence[Planned],
    results: Sequence[Any],
    store: Store,
    folder: RunFolder,
    state: Mapping[str, Any],
) -> SweepRecord:
    """Return the record of a sweep from the results that Tune has of its trials."""
    trials = sorted(
        (_trial(sweep, overrides, planned, result) for result in results), key=lambda t: t.name
    )
    pairs = sorted((pair for trial in trials for pair in trial.reached.values()), key=_epochs)
    distinct, without_sharing = stage_epochs(pairs)
    checkpoints = [Node(store, "checkpoints", digest, {}) for digest in dict(pairs)]
    trained = sum(epochs_trained(node, since=state["started"]) for node in checkpoints)
    return SweepRecord(sweep, folder.path, trials, trained, distinct, without_sharing)


def _epochs(pair: tuple[str, int]) -> int:
    return pair[1]


def _trial(
    sweep: Sweep, overrides: Sequence[str], planned: Sequence[Planned], result: Any
) -> Trial:
    """Return how a trial ended. Tune's last report says how many epochs it completed."""
    told: dict[str, Any] = result.metrics or {}
    config: dict[str, Any] = result.config
    if "trial" in config:
        plan = planned[config["trial"]]
        name, values, num_epochs = plan.name, plan.values, plan.num_epochs
    else:
        name, values = told.get("trial_id", "?"), config
        num_epochs = num_epochs_of(curriculum_here(sweep, "any", values, overrides))
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


def write_record(record: SweepRecord, state: Mapping[str, Any]) -> None:
    """Write the sweep's files, and log them and the sweep's figures in MLflow."""
    paths, uri = write_sweep(record, state), tracking_uri(record.folder)
    with needed(uri):
        _log_sweep(quiet_client(uri), record, state, paths)


def _log_sweep(
    client: MlflowClient, record: SweepRecord, state: Mapping[str, Any], paths: Sequence[Path]
) -> None:
    end_running_below(client, state["parent"])  # Tune kills the process of a trial that it stops
    for path in paths:
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

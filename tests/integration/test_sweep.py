"""A sweep of two trials whose curricula share a stage: each stage of their tree is trained once."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from common import ROOT, TINY, encodings_per_picture, run_here, tiny, two_stages
from mlflow import MlflowClient

from ppt.config import ConfigError
from ppt.distributed.tune import run_sweep
from ppt.experiments.sweep import load_sweep
from ppt.experiments.sweep_results import SweepRecord

JOINT = "stages.ris_joint.num_epochs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a store of what both trials need but for their first stage, made in this process."""
    folder = tmp_path_factory.mktemp("sweep")
    for epochs in (1, 3):
        override = (f"{JOINT}={epochs}", "model_selection=pseudo_iou")
        record = run_here(tiny(folder, folder / "runs", *override))
    first = record.stages[0]
    for node in (first.checkpoint, first.results):
        node.remove()
    return folder


def written(folder: Path, name: str, max_concurrent: int = 2) -> Path:
    """A sweep over the second of two stages; both trials want the same first one at once."""
    path = folder / f"{name}.yaml"
    sweep = {
        "name": name,
        "curriculum": two_stages(folder).name,
        "space": {JOINT: [1, 3]},
        "max_concurrent": max_concurrent,
    }
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def swept(cluster: None, folder: Path) -> SweepRecord:
    return run_sweep(load_sweep(written(folder, "swept")), [*TINY[1:], f"store={folder / 'runs'}"])


def test_every_stage_of_the_tree_is_trained_once(swept: SweepRecord, folder: Path) -> None:
    assert [trial.status for trial in swept.trials] == ["done"] * 2, swept.trials
    assert [trial.values[JOINT] for trial in swept.trials] == [1, 3]
    assert (swept.distinct, swept.without_sharing) == (1 + (1 + 3), 2 + 4)
    assert swept.trained == 1  # by one of the trials; the other waited and found it
    # every log of an epoch in the store: three checkpoints, no epoch of any trained twice
    logs = sorted((folder / "runs" / "store" / "checkpoints").glob("*/epoch-*.json"))
    assert len(logs) == 5
    assert len({(log.parent, log.name[:10]) for log in logs}) == 5
    assert len({log.parent for log in logs}) == 3


def test_a_sweep_encodes_every_picture_once(swept: SweepRecord, folder: Path) -> None:
    assert encodings_per_picture(folder / "runs") == 1.00


def test_what_a_sweep_leaves(swept: SweepRecord) -> None:
    folder = Path(swept.folder)
    told = json.loads((folder / "sweep.json").read_text())
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["00", "01"]
    assert all(0 < float(row["pseudo_iou"]) <= 100 for row in rows)
    best = max(told["trials"], key=lambda trial: trial["pseudo_iou"])
    assert swept.best_weak and told["best_by_pseudo_iou"] == swept.best_weak.name
    assert best["pseudo_iou"] == swept.best_weak.pseudo_iou
    # a trial is a run as any other, measured as it measured itself
    for trial in swept.trials:
        summary = json.loads((folder.parent / f"swept.{trial.name}" / "summary.json").read_text())
        assert summary["chosen"]["by"] == "pseudo_iou"
        chosen = summary["chosen"]["stage"]
        assert (trial.stage, trial.pseudo_iou) == (
            chosen,
            summary["chosen"]["validation_mIoU"][chosen],
        )
        assert trial.mIoU == next(s["mIoU"] for s in summary["stages"] if s["name"] == chosen)


def test_trials_are_children_of_the_sweep_in_mlflow(swept: SweepRecord) -> None:
    folder = Path(swept.folder)
    parent = json.loads((folder / "sweep.json").read_text())["parent"]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["stage_epochs/trained"] == 1
    experiments = [run.info.experiment_id]
    children = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent}'")
    assert sorted(child.info.run_name for child in children) == [f"swept.0{i}" for i in range(2)]
    assert {child.info.status for child in children} == {"FINISHED"}
    # by what the table is sorted by, the server sorts them as well
    for trial in swept.trials:
        name = f"swept.{trial.name}"
        child = next(child for child in children if child.info.run_name == name)
        figures = child.data.metrics
        assert figures["chosen/pseudo_iou"] == pytest.approx(trial.pseudo_iou)
        assert figures["chosen/mIoU"] == pytest.approx(trial.mIoU)
        assert child.data.tags["ppt.chosen"] == trial.stage


def test_a_killed_sweep_is_resumed_to_the_same_table(swept: SweepRecord, folder: Path) -> None:
    """Another sweep of the same trials, killed when one has ended; nothing is left to train."""
    path = written(folder, "again", max_concurrent=1)
    overrides = [*TINY[1:], f"store={folder / 'runs'}"]
    command = [sys.executable, "-m", "ppt.jobs.sweep", str(path), *overrides]
    environment = {**os.environ, "RAY_ADDRESS": "local"}  # not one that another test has started
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    first = folder / "runs" / "again.00" / "summary.json"
    deadline = time.monotonic() + 600
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert first.exists() and process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "trials" not in json.loads((folder / "runs" / "again" / "sweep.json").read_text())

    resumed = run_sweep(load_sweep(path), overrides, resume=True)
    assert resumed.shared == "0 stage-epochs trained, 6 without sharing (5 were trained before)"
    told = json.loads((folder / "runs" / "again" / "sweep.json").read_text())
    assert [_figures(trial) for trial in told["trials"]] == [
        _figures(vars(trial)) for trial in swept.trials
    ]


def _figures(trial: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(trial[k] for k in ("name", "status", "pseudo_iou", "mIoU", "stage", "epochs"))


def test_nothing_to_resume_is_told(cluster: None, folder: Path, tmp_path: Path) -> None:
    sweep = load_sweep(written(folder, "never"))
    with pytest.raises(ConfigError, match="--resume: sweep 'never' has not begun"):
        run_sweep(sweep, [*TINY[1:], f"store={tmp_path}"], resume=True)
    assert not (tmp_path / "never").exists()

"""Ray against this process: the same digests and bytes, though killed, and on a store by URL."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from chaos.attempts import hooked
from common import PATIENCE, ROOT, TINY, figures, nodes_of, run_here, tiny, two_stages
from mlflow import MlflowClient

from ppt.config import Curriculum
from ppt.curriculum.run import run_curriculum
from ppt.distributed.ray_runner import ray_runner
from ppt.store.checkpoint_files import GENERATOR, METADATA, OPTIMIZER
from ppt.store.nodes import Node
from ppt.tracking.mlflow_runs import own_uri
from ppt.tracking.record import RunRecord
from ppt.training.stage import EPOCHS, epoch_node


def run_on_ray(curriculum: Curriculum) -> RunRecord:
    with ray_runner(curriculum) as runner:
        return run_curriculum(curriculum, runner)


def content(node: Node, name: str = GENERATOR) -> bytes:
    return node.store.fs.cat_file(node.path(name))


# ---------------------------------------------------------------- killed, on a URL


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What fsspec's DirFileSystem is a view of: `bucket` means nothing to open() in any process."""
    folder = tmp_path_factory.mktemp("remote")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("tmp")))
        # Where a path of the store would land that was taken for a local one.
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield folder


@dataclass(frozen=True)
class Killed:
    url: str
    was_complete: set[str]  # digests of the checkpoints that were when it was killed


@pytest.fixture(scope="module")
def killed(tiny_run: RunRecord, remote: Path) -> Killed:
    """SIGKILL to driver, workers and all after the first epoch of the second stage.

    The first stage is there: this process trained it. At the end of the second epoch the worker
    waits to be killed.
    """
    first, second = (stage.checkpoint for stage in tiny_run.stages)
    stored = remote / "bucket" / "store" / "checkpoints"
    shutil.copytree(first.folder, stored / first.digest)
    for node in nodes_of(tiny_run).values():  # copies of an earlier test run, in Ray's workers
        copy = Path(tempfile.gettempdir(), "ppt-cache", node.kind, node.digest)
        shutil.rmtree(copy, ignore_errors=True)
    url = f"dir://bucket::file://{remote}"
    command = [
        sys.executable,
        "-m",
        "ppt.jobs.train",
        str(two_stages(remote)),
        *TINY,
        f"store={url}",
    ]
    place = f"write bucket/store/checkpoints/{second.digest}/.epoch-0002-x.json.x"
    plan = {"root": str(remote), "holds": [{"place": place, "done": str(remote / "held")}]}
    environment = {**os.environ, **hooked(plan, remote), "RAY_ADDRESS": "local"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    kept = epoch_node(second, 1).digest
    deadline = time.monotonic() + PATIENCE
    while not (remote / "bucket" / "store" / EPOCHS / kept / "manifest.json").exists():
        assert time.monotonic() < deadline and process.poll() is None, "it was not reached"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return Killed(url, {path.parent.name for path in stored.glob("*/manifest.json")})


@pytest.fixture(scope="module")
def resumed(cluster: None, killed: Killed, remote: Path) -> RunRecord:
    """The same run on another cluster, to its end."""
    return run_on_ray(tiny(remote, killed.url))


def test_ray_makes_what_this_process_makes(tiny_run: RunRecord, resumed: RunRecord) -> None:
    ours, theirs = nodes_of(tiny_run), nodes_of(resumed)
    assert {name: node.digest for name, node in theirs.items()} == {
        name: node.digest for name, node in ours.items()
    }
    for name, node in theirs.items():
        assert node.num_buckets == ours[name].num_buckets
        for bucket in range(node.num_buckets):
            assert node.read(bucket).equals(ours[name].read(bucket)), name
    assert figures(resumed) == figures(tiny_run)
    assert resumed.metrics() == tiny_run.metrics()


def test_with_one_worker_a_checkpoint_is_the_same_bytes(
    tiny_run: RunRecord, resumed: RunRecord
) -> None:
    assert [stage.name for stage in resumed.stages] == ["semantic_alignment", "ris_joint"]
    for stage in resumed.stages:
        for name in (GENERATOR, OPTIMIZER, METADATA):
            here = content(tiny_run.stage(stage.name).checkpoint, name)
            assert content(stage.checkpoint, name) == here, (stage.name, name)


def test_a_killed_run_goes_on_where_it_stood(
    killed: Killed, resumed: RunRecord, remote: Path
) -> None:
    first, second = (stage.checkpoint for stage in resumed.stages)
    assert killed.was_complete == {first.digest}
    assert len(resumed.stages[1].history) == 3
    for checkpoint in (first, second):
        logs = (remote / "bucket" / "store" / "checkpoints" / checkpoint.digest).glob("epoch-0001*")
        assert len(list(logs)) == 1  # the first epoch was trained before the kill, and not again
    assert not list((remote / "bucket" / "store" / EPOCHS).iterdir())


def test_a_run_on_a_url_leaves_everything_there(resumed: RunRecord, remote: Path) -> None:
    there = remote / "bucket"
    assert {path.name for path in there.iterdir()} >= {"store", "tiny"}
    assert not Path("bucket").exists() and not Path(ROOT, "bucket").exists()
    summary = json.loads((there / "tiny" / "summary.json").read_text())
    assert len(summary["stages"]) == len(resumed.stages)
    assert (there / "tiny" / "report.html").stat().st_size > 10_000
    assert (there / "tiny" / "mlflow.db").exists()

    run_id = json.loads((there / "tiny" / "mlflow-run.json").read_text())["run_id"]
    again = run_on_ray(resumed.curriculum)  # nothing to do: the same MLflow run, from the URL
    assert json.loads((Path(again.folder) / "mlflow-run.json").read_text())["run_id"] == run_id


@pytest.mark.parametrize("run", ["tiny_run", "resumed"])
def test_epochs_of_a_training_in_mlflow(run: str, request: pytest.FixtureRequest) -> None:
    record: RunRecord = request.getfixturevalue(run)
    stage = record.stage("ris_joint")
    client = MlflowClient(own_uri(record.folder))
    (experiment,) = client.search_experiments(filter_string="name = 'ppt'")
    found = client.search_runs([experiment.experiment_id], "tags.`ppt.stage` = 'ris_joint'")[0]

    def logged(name: str) -> dict[int, float]:
        points = client.get_metric_history(found.info.run_id, name)
        return {point.step: point.value for point in points}

    for name in ("loss", "gradient_norm", "learning_rate"):
        assert logged(name) == {epoch["epoch"]: epoch[name] for epoch in stage.history}
    rate = record.curriculum.stages["ris_joint"].learning_rate
    last = 0.05 * rate  # of the schedule `decay`
    assert logged("learning_rate")[3] == pytest.approx(last, rel=0.01)
    # Of the first epoch, which was trained before the kill, it is not known any more.
    trained = {1, 2, 3} if run == "tiny_run" else {2, 3}
    for name in ("expressions_per_second", "memory_gib"):
        assert logged(name).keys() == trained and all(value > 0 for value in logged(name).values())


# ---------------------------------------------------------------- two workers


def gradient(record: RunRecord) -> torch.Tensor:
    """Of the one iteration of the record's only stage, from the optimiser's state, its norm 1."""
    (stage,) = record.stages
    state = torch.load(io.BytesIO(content(stage.checkpoint, OPTIMIZER)))["state"]
    first = torch.cat([moments["exp_avg"].flatten() for moments in state.values()])
    return first / first.norm()


def test_a_stage_is_trained_by_the_optimiser_that_is_configured(tiny_run: RunRecord) -> None:
    """By Muon; that Adam is taken where it is configured, the next test shows."""
    assert tiny_run.curriculum.training.optimizer == "muon"
    for stage in tiny_run.stages:
        state = torch.load(io.BytesIO(content(stage.checkpoint, OPTIMIZER)))["state"]
        assert all(of_parameter.keys() == {"average"} for of_parameter in state.values())


def test_the_gradient_of_two_workers_is_that_of_one(
    cluster: None, tiny_run: RunRecord, tmp_path: Path
) -> None:
    """Without all that is drawn for each worker anew: points, and which masks are decoded."""
    shutil.copytree(Path(tiny_run.curriculum.store, "store"), tmp_path / "store")
    curriculum = tiny(
        tmp_path,
        tmp_path,
        "training.optimizer=adam",  # its first average is a share of the gradient
        "training.max_mask_prompts=null",
        "training.match_cost={points: 0, point_labels: 0}",
        "training.loss_weights={points: 0, point_labels: 0}",
    )
    first = dict(list(curriculum.stages.items())[:1])
    one, two = (
        curriculum.model_copy(
            update={
                "name": f"workers-{number}",
                "stages": first,
                "resources": curriculum.resources.model_copy(
                    update={"num_workers": number, "cpus_per_worker": 0.5}
                ),
            }
        )
        for number in (1, 2)
    )
    alone, together = run_here(one), run_on_ray(two)
    assert together.stages[0].checkpoint.digest != alone.stages[0].checkpoint.digest
    assert [losses["epoch"] for losses in together.stages[0].history] == [1]
    torch.testing.assert_close(gradient(together), gradient(alone), atol=1e-6, rtol=1e-3)


# ---------------------------------------------------------------- damaged files


def place_in(path: Path, column: str) -> int:
    """The middle of a column's arrays in an Arrow file, which are checked as they are read."""
    memory = pa.memory_map(str(path)).read_buffer()
    table = pa.ipc.open_file(memory).read_all()
    arrays = table[column].chunk(0).storage.flatten().buffers()[1]
    return arrays.address + arrays.size // 2 - memory.address


@pytest.mark.parametrize("in_an_array", [False, True], ids=["end", "array"])
def test_what_actors_and_readers_come_upon_is_made_anew(
    cluster: None,
    tiny_run: RunRecord,
    in_an_array: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An actor reads features to make labels again, and the last stage is trained again."""
    curriculum = tiny(tmp_path, tmp_path / "runs", "resources.max_failures=0")
    nodes, store = nodes_of(tiny_run), tmp_path / "runs" / "store"
    shutil.copytree(Path(tiny_run.curriculum.store, "store"), store)

    def folder(name: str) -> Path:
        return store / nodes[name].kind / nodes[name].digest

    (folder("labels.h") / "bucket-00000.json").unlink()
    shutil.rmtree(folder("checkpoints.ris_joint"))
    damaged = {}
    for name, column in (
        ("features.referring", "surgery_tokens"),
        ("features.object_centric", "visual_features_1"),
    ):
        path = folder(name) / nodes[name].receipt(0)["files"]["data"]
        whole = damaged[path] = path.read_bytes()
        at = place_in(path, column) if in_an_array else len(whole) - 100
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    record = run_on_ray(curriculum)
    told = capsys.readouterr().err.replace("\n", " ")
    for path, whole in damaged.items():
        assert path.read_bytes() == whole
        assert f"{path} of features is damaged" in told
    assert told.count("bucket 0 is made anew") == len(damaged)
    assert figures(record) == figures(tiny_run)


# ---------------------------------------------------------------- interrupted by hand


def test_who_interrupts_a_training_by_hand_is_told_and_it_is_no_failure(tmp_path: Path) -> None:
    """By Ctrl-C or SIGTERM. Ray's own handlers would exit the process, or print a trace."""
    exit_codes = {signal.SIGINT: 130, signal.SIGTERM: 143}
    processes = {}
    for number in exit_codes:
        home = tmp_path / number.name
        home.mkdir()
        overrides = [*TINY, "stages.semantic_alignment.num_epochs=500", f"store={home / 'store'}"]
        with (home / "out.txt").open("w") as out:
            processes[number] = subprocess.Popen(
                [sys.executable, "-m", "ppt.jobs.train", str(two_stages(home)), *overrides],
                cwd=ROOT,
                env={**os.environ, "RAY_ADDRESS": "local"},
                stdout=out,
                stderr=out,
                start_new_session=True,
                # A shell that runs pytest in the background has Ctrl-C ignored, also for others.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
    deadline = time.monotonic() + PATIENCE
    for number, process in processes.items():
        log, home = tmp_path / number.name / "out.txt", tmp_path / number.name
        while "epoch 1:" not in log.read_text() and process.poll() is None:
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(PATIENCE) == exit_codes[number], log.read_text()
        told = log.read_text().splitlines()[-1]
        assert told == "interrupted: run the same command again to go on from here"
        assert "Traceback" not in log.read_text() and "***" not in log.read_text()
        [folder] = (home / "store").glob("*/mlflow.db")
        client = MlflowClient(own_uri(folder.parent))
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        assert {run.info.status for run in client.search_runs(ids)} == {"KILLED"}

"""Resume, proved by breaking it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from conftest import ROOT, SMALL, small

from ppt.config import Resources
from ppt.pipeline.passes import PassError, Pool
from ppt.pipeline.record import RunRecord
from ppt.store import BucketOutput, Count, Store

# Ray's workers cannot import this file: what it defines goes to them whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class _DieOnce:
    """A pass whose actor is killed in the middle of bucket 1, the first time."""

    def __init__(self, flag: Path, times: int = 1) -> None:
        self.flag, self.times = flag, times

    def __call__(self, bucket: int) -> BucketOutput:
        if bucket == 1 and len(list(self.flag.iterdir())) < self.times:
            (self.flag / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        table = pa.table({"bucket": [bucket]})
        return BucketOutput({"data": table}, {"rows": Count(1, 1)})


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    folder = tmp_path / "flag"
    folder.mkdir()
    return folder


def _pool() -> Pool:
    return Pool(Resources(num_actors=2, cpus_per_actor=0.5))


def test_a_killed_actor_loses_no_bucket(cluster: None, tmp_path: Path, flag: Path) -> None:
    pool = _pool()
    node = Store(str(tmp_path)).node("samples", {}, buckets=5)
    pool.run(node, _DieOnce(flag), title="pass")
    pool.close()
    assert node.read_all()["bucket"].to_pylist() == [0, 1, 2, 3, 4]
    assert len(list(flag.iterdir())) == 1


def test_a_bucket_that_kills_every_actor_is_named(
    cluster: None, tmp_path: Path, flag: Path
) -> None:
    pool = _pool()
    node = Store(str(tmp_path)).node("samples", {}, buckets=3)
    with pytest.raises(PassError, match="bucket 1 lost its actor 3 times"):
        pool.run(node, _DieOnce(flag, times=9), title="pass")
    pool.close()
    assert not node.is_complete()


def _fail(bucket: int) -> BucketOutput:
    raise ValueError(f"nothing to read in bucket {bucket}")


def test_an_error_names_node_and_bucket(cluster: None, tmp_path: Path) -> None:
    pool = _pool()
    node = Store(str(tmp_path)).node("samples", {}, buckets=1)
    with pytest.raises(PassError, match=r"(?s)samples .*bucket 0: .*nothing to read in bucket 0"):
        pool.run(node, _fail, title="pass")
    pool.close()


def test_a_run_killed_in_the_ris_stage_goes_on(
    finished: RunRecord, store: Path, tmp_path: Path
) -> None:
    """SIGKILL after the first epoch of the RIS stage, start again: the same checkpoint digests."""
    _without_stages(store, tmp_path)
    command = [
        *(sys.executable, "-m", "jobs.train", str(ROOT / "curricula" / "quickstart.yaml")),
        *(*SMALL, f"store={tmp_path}"),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    stage = next(s.checkpoint for s in finished.stages if s.name == "ris_object_centric")
    first_epoch = tmp_path / "ray-train" / stage.digest / "epoch-0001"
    _wait_for(lambda: first_epoch.exists() or process.poll() is not None)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = tmp_path / "store" / "checkpoints" / stage.digest / "manifest.json"
    assert not done.exists()

    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    ours = json.loads((tmp_path / "small" / "summary.json").read_text())
    unbroken = json.loads((Path(finished.folder) / "summary.json").read_text())
    assert [_figures(s) for s in ours["stages"]] == [_figures(s) for s in unbroken["stages"]]
    for record in finished.stages:
        name = Path("store", "checkpoints", record.checkpoint.digest, "generator.safetensors")
        assert (tmp_path / name).read_bytes() == (store / name).read_bytes(), record.name


def _without_stages(store: Path, target: Path) -> None:
    """Copy what comes before training: the test is about the stages."""
    shutil.copytree(store / "store", target / "store")
    for kind in ("checkpoints", "results"):
        shutil.rmtree(target / "store" / kind)


def _figures(stage: dict) -> dict:
    return {key: value for key, value in stage.items() if key != "seconds"}


def _wait_for(condition, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_the_small_run_is_what_the_command_runs(store: Path) -> None:
    assert small(store).name == "small"

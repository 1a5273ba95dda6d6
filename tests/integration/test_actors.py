"""The pool of actors on a real local Ray: its actors are killed, its steps fail."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from ppt.config import ConfigError, Resources
from ppt.distributed import actors
from ppt.distributed.actors import ActorPool, StepError
from ppt.steps.step import Step
from ppt.store.nodes import BucketOutput, Count, Node, Store

# Ray's workers cannot import this file: what it defines goes to them whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class _Numbers(Step):
    """A row for each bucket, with the bucket's number."""

    kind = "samples"
    command = "prepare"
    title = "numbers"

    buckets: int = 5

    def spec(self) -> dict[str, Any]:
        return {}

    def __call__(self, bucket: int) -> BucketOutput:
        return BucketOutput({"data": pa.table({"bucket": [bucket]})}, {"rows": Count(1, 1)})


@dataclass(frozen=True)
class _Deadly(_Numbers):
    """Kills the process that makes bucket 1, so many times; it leaves half a file each time."""

    deaths: Path = Path()  # a folder with a file for each
    store: Path = Path()
    times: int = 1

    def __call__(self, bucket: int) -> BucketOutput:
        if bucket == 1 and len(list(self.deaths.iterdir())) < self.times:
            (self.deaths / str(os.getpid())).touch()
            node = node_of(self, self.store)
            os.makedirs(node.folder, exist_ok=True)
            Path(node.path(".data-00001.parquet.0123abcd")).write_bytes(b"half a fi")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(bucket)


@dataclass(frozen=True)
class _Failing(_Numbers):
    def __call__(self, bucket: int) -> BucketOutput:
        raise ValueError(f"nothing to read in bucket {bucket}")


@dataclass(frozen=True)
class _Full(_Numbers):
    """Writes bucket 1 to a device that answers as a full disk does."""

    def __call__(self, bucket: int) -> BucketOutput:
        if bucket == 1:
            Path("/dev/full").write_bytes(b"1")
        return super().__call__(bucket)


@pytest.fixture
def deaths(tmp_path: Path) -> Path:
    folder = tmp_path / "deaths"
    folder.mkdir()
    return folder


def node_of(step: Step, tmp_path: Path) -> Node:
    return step.node(Store(str(tmp_path)))


def test_a_killed_actor_loses_no_bucket(pool: ActorPool, tmp_path: Path, deaths: Path) -> None:
    step = _Deadly(deaths=deaths, store=tmp_path)
    node = node_of(step, tmp_path)
    pool.make(node, step)
    assert not [name for name in node.sizes() if name.startswith(".")]
    assert node.read_all()["bucket"].to_pylist() == [0, 1, 2, 3, 4]
    assert len(list(deaths.iterdir())) == 1
    assert len(pool.actors) == 2  # a new one is in its place


def test_an_error_names_node_and_bucket(pool: ActorPool, tmp_path: Path) -> None:
    step = _Failing(buckets=1)
    node = node_of(step, tmp_path)
    match = rf"(?s)samples {node.digest}, bucket 0: .*nothing to read in bucket 0"
    with pytest.raises(StepError, match=match):
        pool.make(node, step)
    assert not node.is_complete()


def test_a_full_disk_is_told(pool: ActorPool, tmp_path: Path) -> None:
    node = node_of(_Full(), tmp_path)
    with pytest.raises(ConfigError, match="^No space left on device: free some space, then run"):
        pool.make(node, _Full())
    pool.make(node, _Numbers())
    assert node.read_all()["bucket"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_bucket_that_kills_every_actor_is_named(
    pool: ActorPool, tmp_path: Path, deaths: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "MAX_ATTEMPTS", 2)  # every one starts a process
    step = _Deadly(buckets=3, deaths=deaths, store=tmp_path, times=9)
    node = node_of(step, tmp_path)
    with pytest.raises(StepError, match="bucket 1 lost its actor 2 times"):
        pool.make(node, step)
    assert not node.is_complete()
    assert len(list(deaths.iterdir())) == 2


def test_actors_expect_their_next_bucket_and_take_what_is_left() -> None:
    waiting, expected, got = list(range(6)), dict[str, int](), list[tuple[str, int, int | None]]()
    for actor in "aabaaa":  # b is slow: at last a takes what b expects
        got.append((actor, *actors._choose(waiting, expected, actor)))
    assert got == [
        ("a", 0, 1),
        ("a", 1, 2),
        ("b", 3, 4),
        ("a", 2, 5),
        ("a", 5, None),
        ("a", 4, None),
    ]
    assert (waiting, expected) == ([], {})


def test_more_actors_than_there_is_room_for(cluster: None, tmp_path: Path) -> None:
    """The step does not wait for those that do not start."""
    room = ray.cluster_resources()["CPU"]
    pool = ActorPool(Resources(num_actors=(1, 2), cpus_per_actor=0.6 * room))
    try:
        node = node_of(_Numbers(), tmp_path)
        pool.make(node, _Numbers())
        assert len(pool.actors) == 2
        assert node.is_complete()
    finally:
        pool.close()

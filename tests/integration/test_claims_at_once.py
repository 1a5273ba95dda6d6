"""Runs that want the same node at the same time: it is made once, also when its maker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import ray.util
from common import PATIENCE

from ppt.distributed import claims
from ppt.store.nodes import Node, Store

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def quick_leases(cluster: None) -> Iterator[None]:
    """The cluster's actor of leases, with leases that run out sooner."""
    ray.kill(claims.leases_actor(), no_restart=True)
    deadline = time.monotonic() + PATIENCE
    while "ppt-claims" in [a["name"] for a in ray.util.list_named_actors(all_namespaces=True)]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    actor = claims.leases_actor(seconds=6.0)
    yield
    ray.kill(actor, no_restart=True)


@ray.remote(num_cpus=0, max_retries=0)
def make(node: Node, folder: Path, *, die: bool = False) -> str:
    """Make a node as a pass or a stage does; leaves a file for each that began."""
    with claims.claim(node, "a node", lambda: None) as ours:
        if ours:
            (folder / f"began-{os.getpid()}").touch()
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(2 * claims.ASK_SECONDS)  # others ask meanwhile
            node.write_manifest()
    return "made" if ours else "found"


def test_whoever_comes_first_makes_it(cluster: None, tmp_path: Path) -> None:
    node = Store(str(tmp_path)).node("checkpoints", {})
    done = ray.get([make.remote(node, tmp_path) for _ in range(3)])
    assert sorted(done) == ["found", "found", "made"]
    assert len(list(tmp_path.glob("began-*"))) == 1


def test_when_the_maker_dies_another_takes_over(quick_leases: None, tmp_path: Path) -> None:
    node = Store(str(tmp_path)).node("checkpoints", {})
    dead = make.remote(node, tmp_path, die=True)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(dead)
    assert (
        ray.get([make.remote(node, tmp_path) for _ in range(2)], timeout=PATIENCE).count("made")
        == 1
    )
    assert len(list(tmp_path.glob("began-*"))) == 2
    assert node.is_complete()


ELSEWHERE = """
import sys
from ppt.config import Resources
from ppt.distributed.claims import claim
from ppt.distributed.cluster import connected
from ppt.store.nodes import Store
node = Store(sys.argv[1]).node("checkpoints", {})
few = Resources(num_actors=1, cpus_per_actor=0.1, cpus_per_worker=0.1, cpus_per_reader=0.1)
with connected(few), claim(node, "a stage", print) as ours:
    print("ours" if ours else "found", flush=True)
    sys.stdin.readline()
    node.write_manifest(made="elsewhere")
"""


def test_a_run_on_another_ray_is_waited_for(
    cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The leases of the two clusters know nothing of each other; the store has a lock."""
    node = Store(str(tmp_path)).node("checkpoints", {})
    other = subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)],
        env={**os.environ, "RAY_ADDRESS": "local"},  # not one that another test has started
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout and other.stdout.readline() == "ours\n"
    found, released = list[bool](), list[bool]()

    def claim() -> None:
        with claims.claim(node, "a stage", lambda: released.append(True)) as ours:
            found.append(ours)

    thread = threading.Thread(target=claim)
    thread.start()
    told = ""
    while "a stage: another run is making this, waiting" not in told:
        told += capfd.readouterr().err.replace("\n", " ")
        time.sleep(0.05)
    assert found == [] and released == [True]
    other.communicate("\n")
    thread.join(PATIENCE)
    assert found == [False]
    assert node.manifest()["made"] == "elsewhere"

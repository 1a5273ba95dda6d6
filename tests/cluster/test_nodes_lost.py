"""A curriculum over three nodes: one after the other is lost, each at other work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from chaos.attempts import hooked
from common import PATIENCE, QUICKSTART, ROOT, run_here
from ray.cluster_utils import Cluster

from ppt.config import load_curriculum

CURRICULUM = f"""
base: {QUICKSTART}
name: nodes
num_buckets: 6
data:
  referring: {{ num_pictures: 48 }}
  object_centric: {{ num_pictures: 24 }}
  validation: {{ num_pictures: 3 }}
  evaluation: {{ num_pictures: 6 }}
synthesis: {{ num_pictures: 12 }}
stages:
  semantic_alignment: {{ num_epochs: 3 }}
  ris_object_centric: null
  ris_joint: {{ num_epochs: 1 }}
  domain_refinement: null
resources: # one actor or worker a node
  {{ num_actors: 2, cpus_per_actor: 0.8, num_workers: [1, 2], cpus_per_worker: 0.8 }}
"""


@contextmanager
def nodes_with(variables: dict[str, str]) -> Iterator[Cluster]:
    """A head that does no work, and three nodes of one CPU, with variables of the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        try:
            for number in range(3):
                _add_node(cluster, number)
            yield cluster
        finally:
            cluster.shutdown()


def _add_node(cluster: Cluster, number: int) -> None:
    """A node with an address of its own, so that the driver takes the head for its node."""
    cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{number + 2}")


def _lose_the_node_of(nodes: Cluster, process: psutil.Process) -> None:
    """Take away the node of a process, as a spot instance goes."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes.worker_nodes}
    nodes.remove_node(raylets[process.ppid()], allow_graceful=False)
    with suppress(psutil.NoSuchProcess):
        process.kill()  # what waits does not see that its node is gone


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def test_a_run_goes_on_when_nodes_are_lost(tmp_path: Path) -> None:
    """What is lost is the encoding of H, a stage and Select; all else was made in this process.

    An actor, a worker and an actor wait where they write a file, until their node is lost.
    """
    path = tmp_path / "nodes.yaml"
    path.write_text(CURRICULUM)
    record = run_here(load_curriculum(path, [f"store={tmp_path}"]))
    features, stage = record.data["referring"].features, record.stages[0]
    (selected,) = record.selected
    encoded = [features.read(bucket) for bucket in range(features.num_buckets)]
    for node in (features, stage.checkpoint, selected):
        node.remove()

    places = {
        "encode": f"features/{features.digest}/.data-00002.arrow",
        "train": f"checkpoints/{stage.checkpoint.digest}/.epoch-0002-x.json",
        "select": f"{selected.kind}/{selected.digest}/.data-00001.parquet",
    }
    holds = [
        {"place": f"write store/{path}.x", "done": str(tmp_path / name)}
        for name, path in places.items()
    ]
    hook = hooked({"root": str(tmp_path), "holds": holds}, tmp_path)
    with nodes_with(hook) as nodes:
        told = _lose_three(nodes, path, [*places])
    made = re.findall(r"^✓ (.*?): \d", told, re.MULTILINE)
    assert made == ["encode referring", "train semantic_alignment", "select, round 1"], told
    assert re.search(r"✓ select, round 1: 96 in", told)
    assert [features.read(bucket) for bucket in range(features.num_buckets)] == encoded
    assert [m["epoch"] for m in stage.checkpoint.manifest()["history"]] == [1, 2, 3]
    assert selected.is_complete()


def _lose_three(nodes: Cluster, curriculum: Path, losses: list[str]) -> str:
    """Run a curriculum, lose the node of each process that waits, and return the log."""
    folder = curriculum.parent
    log = folder / "log"
    environment = {
        **os.environ,
        "RAY_ADDRESS": nodes.address,
        # Train believes for up to 20 s in a node that is gone, and waits so long for it.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    }
    command = [sys.executable, "-m", "ppt.jobs.train", str(curriculum), f"store={folder}"]
    with log.open("w") as file:
        run = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        for loss in losses:
            waits = folder / loss
            _wait_for(lambda waits=waits: run.poll() is not None or waits.exists())
            assert run.poll() is None, log.read_text()
            if loss == losses[-1]:
                _add_node(nodes, 3)  # else nobody is left
            _lose_the_node_of(nodes, psutil.Process(int(waits.read_text())))
        assert run.wait(timeout=PATIENCE) == 0, log.read_text()
    finally:
        run.kill()
    return log.read_text()

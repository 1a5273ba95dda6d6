"""A curriculum over three nodes: one after the other is lost, each at other work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from common import QUICKSTART, ROOT, run_here
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

WAIT_SECONDS = 900
"""Not a judgement of speed. Every loss starts processes that import torch: on a core that other
work takes nine tenths of, minutes pass between two lines of the log."""


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head that does no work, and three nodes of one CPU."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for number in range(3):
        _add_node(cluster, number)
    yield cluster
    cluster.shutdown()


def _add_node(cluster: Cluster, number: int) -> None:
    """A node with an address of its own, so that the driver takes the head for its node."""
    cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{number + 2}")


def _lose_the_node_of(nodes: Cluster, title: str) -> None:
    """Take away the node of a process at work, as a spot instance goes."""
    node, process = _wait_for(lambda: _frozen(nodes, title))
    nodes.remove_node(node, allow_graceful=False)
    process.kill()  # frozen, it would not see that its node is gone


def _frozen(nodes: Cluster, title: str) -> tuple[Any, psutil.Process] | None:
    """(node, process) of somebody at work, who will not come to its end; None if there is nobody.

    Ray names a process by the task that it is at, and by its class alone when there is none.
    """
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes.worker_nodes}
    for process in psutil.process_iter(["ppid"]):
        node = raylets.get(process.info["ppid"])
        if node is None or not _is_at(process, title):
            continue
        process.suspend()
        if _is_at(process, title):
            return node, process
        process.resume()  # it had just ended
    return None


def _is_at(process: psutil.Process, title: str) -> bool:
    try:
        return "".join(process.cmdline()[:1]).startswith(title)
    except psutil.NoSuchProcess:
        return False


def _wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return found


def test_a_run_goes_on_when_nodes_are_lost(nodes: Cluster, tmp_path: Path) -> None:
    """What is lost is the encoding of H, a stage and Select; all else was made in this process."""
    path = tmp_path / "nodes.yaml"
    path.write_text(CURRICULUM)
    record = run_here(load_curriculum(path, [f"store={tmp_path}"]))
    features, stage = record.data["referring"].features, record.stages[0]
    (selected,) = record.selected
    encoded = [features.read(bucket) for bucket in range(features.num_buckets)]
    for node in (features, stage.checkpoint, selected):
        node.remove()

    log = tmp_path / "log"
    environment = {
        **os.environ,
        "RAY_ADDRESS": nodes.address,
        # Train believes for up to 20 s in a node that is gone, and waits so long for it.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    }
    command = [sys.executable, "-m", "ppt.jobs.train", str(path), f"store={tmp_path}"]
    with log.open("w") as file:
        run = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )

    def wait_for_line(line: str) -> None:
        told = _wait_for(lambda: run.poll() is not None or line in log.read_text())
        assert told and run.poll() is None, log.read_text()

    def lose_one(title: str, *, before: str) -> None:
        _lose_the_node_of(nodes, title)
        assert before not in log.read_text()

    try:
        lose_one("ray::_Actor.run", before="✓ encode referring:")
        wait_for_line("train semantic_alignment, epoch 1")
        lose_one("ray::RayTrainWorker", before="✓ train semantic")  # there is room for one more
        wait_for_line("train semantic_alignment, epoch 2")
        _add_node(nodes, 3)  # else nobody is left after the next one
        wait_for_line("✓ train semantic_alignment")
        lose_one("ray::_Actor.run", before="✓ select, round 1")
        assert run.wait(timeout=WAIT_SECONDS) == 0, log.read_text()
    finally:
        run.kill()
    told = log.read_text()
    made = re.findall(r"^✓ (.*?): \d", told, re.MULTILINE)
    assert made == ["encode referring", "train semantic_alignment", "select, round 1"], told
    assert re.search(r"✓ select, round 1: 96 in", told)
    assert [features.read(bucket) for bucket in range(features.num_buckets)] == encoded
    assert [m["epoch"] for m in stage.checkpoint.manifest()["history"]] == [1, 2, 3]
    assert selected.is_complete()

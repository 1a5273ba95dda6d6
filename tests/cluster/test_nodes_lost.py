"""A small curriculum over three nodes: one after the other is lost, each at other work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]

CURRICULUM = f"""
base: {ROOT}/curricula/quickstart.yaml
name: nodes
num_buckets: 3
data:
  referring: {{ num_pictures: 24 }}
  object_centric: {{ num_pictures: 24 }}
  validation: {{ num_pictures: 3 }}
  evaluation: {{ num_pictures: 6 }}
synthesis: {{ num_pictures: 12 }}
select: {{ min_confidence: 0 }}
stages:
  semantic_alignment: {{ num_epochs: 3 }}
  ris_object_centric: null
  ris_joint: {{ num_epochs: 1 }}
  domain_refinement: null
resources: # one actor or worker a node
  {{ num_actors: 3, cpus_per_actor: 0.8, num_workers: [1, 3], cpus_per_worker: 0.8 }}
"""


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head that does no work, and three nodes of one CPU."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for number in range(3):
        _add_node(cluster, number)
    yield cluster
    cluster.shutdown()


def _add_node(cluster: Cluster, number: int) -> None:
    """A node with an address of its own, so that the driver takes the head for its node."""
    cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{number + 2}")


def _lose_the_node_of(nodes: Cluster, title: str) -> None:
    """Freeze a process at work and take its node away, as a spot instance goes."""
    node, process = _wait_for(lambda: _at_work(nodes, title))
    process.send_signal(signal.SIGSTOP)
    nodes.remove_node(node, allow_graceful=False)
    process.kill()  # frozen, it would not see that its node is gone


def _at_work(nodes: Cluster, title: str) -> tuple | None:
    for node in nodes.worker_nodes:
        (raylet,) = node.all_processes["raylet"]
        for process in psutil.Process(raylet.process.pid).children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                    return node, process
            except psutil.NoSuchProcess:
                continue
    return None


def _wait_for(condition: Callable, seconds: float = 300):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return found


def test_a_run_goes_on_when_nodes_are_lost(nodes: Cluster, tmp_path: Path) -> None:
    (tmp_path / "nodes.yaml").write_text(CURRICULUM)
    command = [sys.executable, "-m", "jobs.train", str(tmp_path / "nodes.yaml")]
    log = tmp_path / "log"
    environment = {**os.environ, "RAY_ADDRESS": nodes.address}
    with log.open("w") as file:
        run = subprocess.Popen(
            [*command, f"store={tmp_path}"],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        for before, title, after in [
            ("✓ prepare evaluation's ground truth", "ray::_Worker.run", "✓ encode referring:"),
            ("train semantic_alignment, epoch 1", "ray::RayTrainWorker", "✓ train semantic"),
            ("✓ evaluate semantic_alignment", "ray::_Worker.run", "✓ select, round 1"),
        ]:
            told = _wait_for(lambda b=before: run.poll() is not None or b in log.read_text())
            assert told and run.poll() is None, log.read_text()
            _lose_the_node_of(nodes, title)
            assert after not in log.read_text()
            if "encode" in after:  # one comes back; later the run goes on with two, then with one
                _add_node(nodes, 3)
        assert run.wait(timeout=600) == 0, log.read_text()
    finally:
        run.kill()
    assert re.search(r"✓ select, round 1: 48 in", log.read_text())
    summary = json.loads((tmp_path / "nodes" / "summary.json").read_text())
    assert [s["name"] for s in summary["stages"]] == ["semantic_alignment", "ris_joint"]

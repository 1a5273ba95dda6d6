"""What has a place beside what, on one machine and on several."""

from __future__ import annotations

import pytest
from ray.cluster_utils import Cluster

from ppt.config import Resources
from ppt.pipeline.cluster import connected, fits_beside_training


def test_actors_stay_beside_training_on_one_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = Resources(
        num_workers=1, cpus_per_worker=2, cpus_per_reader=0, num_actors=2, cpus_per_actor=0.5
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        with connected(resources):
            assert fits_beside_training(resources)
            assert not fits_beside_training(resources, runs=2)
            # An actor on each: neither would have two CPUs left for the worker.
            cluster.add_node(num_cpus=2, node_ip_address="127.0.0.2")
            cluster.wait_for_nodes()
            assert not fits_beside_training(resources)
    finally:
        cluster.shutdown()

"""What has a place beside what, on one machine and on several."""

from __future__ import annotations

import itertools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import psutil
import pytest
from ray.cluster_utils import Cluster

from ppt.config import ConfigError, Resources
from ppt.distributed.cluster import check_fits, connected, fits_beside_training


def test_actors_stay_beside_training_on_one_machine_only() -> None:
    """In a process of its own, since this one may be connected to the cluster of other tests."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_actors_stay_beside_training_on_one_machine_only).result()


def _actors_stay_beside_training_on_one_machine_only() -> None:
    resources = Resources(
        num_workers=1, cpus_per_worker=2, cpus_per_reader=0, num_actors=2, cpus_per_actor=0.5
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        with connected(resources):
            assert fits_beside_training(resources)
            assert not fits_beside_training(resources, runs=2)
            # An actor on each: neither would have two CPUs left for the worker.
            cluster.add_node(num_cpus=2, node_ip_address="127.0.0.2")
            cluster.wait_for_nodes()
            assert not fits_beside_training(resources)
            # Three and two CPUs are five, and no room for a worker of four.
            with pytest.raises(ConfigError, match="num_workers asks for 1 of 4 CPU each.* for 0 "):
                check_fits(Resources(cpus_per_worker=4))
            with pytest.raises(ConfigError, match="num_actors asks for 4 of 1.25 CPU.* for 3 "):
                check_fits(Resources(num_actors=4, cpus_per_actor=1.25))
            check_fits(Resources(num_actors=3, cpus_per_actor=1.25))
            # A command that does not train needs no room for a worker.
            check_fits(
                Resources(num_actors=3, cpus_per_actor=1.25, cpus_per_worker=4), trains=False
            )
            with pytest.raises(ConfigError, match="ask for 1 GPU at once, the cluster has 0"):
                check_fits(Resources(gpus_per_actor=1), trains=False)
    finally:
        cluster.shutdown()


def test_ray_that_does_not_start_in_time_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is busy: Ray's own message, which no setting brings about in less than 30 s."""
    late = Exception("The current node timed out during startup. This could happen because")
    answers: list[Exception | None] = [late, None, late, late, late, ValueError("no")]

    def init(**options: object) -> None:
        if answer := answers.pop(0):
            raise answer

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # other tests use the cluster of this process
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ppt.distributed.cluster.check_fits", lambda resources, trains: None)
    with connected(Resources()):
        assert len(answers) == 4
    with pytest.raises(ConfigError) as told, connected(Resources()):
        pass
    assert str(told.value).startswith("Ray did not start in 3 attempts (The current node timed out")
    assert "--local" in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(ValueError, match="^no$"), connected(Resources()):
        pass
    assert answers == []


def test_what_did_not_start_in_time_is_ended() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_what_did_not_start_in_time_is_ended).result()


def _what_did_not_start_in_time_is_ended() -> None:
    """Ray starts its processes, never finds its node, and its clock runs fast."""
    seconds = itertools.count(step=20)

    def get_node(*_: object) -> None:
        raise RuntimeError("no node yet")

    os.environ.pop("RAY_ADDRESS", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.services.get_node", get_node)
        clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=time.sleep, time=time.time)
        patch.setattr("ray._private.node.time", clock)
        patch.setattr("ppt.distributed.cluster.STARTS", 1)
        with pytest.raises(ConfigError, match="^Ray did not start"), connected(Resources()):
            pass
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    assert not {"raylet", "gcs_server"} & set(names), names

"""`ppt doctor` asks the cluster that RAY_ADDRESS names, instead of looking at this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppt.config import Resources
from ppt.distributed.cluster import nodes_without
from ppt.doctor.machine import check_disk, check_processors


@pytest.fixture(autouse=True)
def _named(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")


def test_the_cluster_says_what_it_has_and_whether_the_run_fits() -> None:
    check = check_processors(Resources())
    assert check.state == "ok"
    assert check.found == "the cluster has 2 CPUs and 0 GPUs on 1 nodes; the run fits"
    check = check_processors(Resources(gpus_per_worker=1))
    assert check.stops and "resources ask for 1 GPU at once, the cluster has 0" in check.todo


def test_every_node_is_asked_whether_it_sees_the_store(tmp_path: Path) -> None:
    assert nodes_without(str(tmp_path)) == []
    assert check_disk(str(tmp_path), None).state == "ok"
    assert [*tmp_path.iterdir()] == []

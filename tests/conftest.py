"""One thread a process, a real local Ray, and one small finished run that many tests look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Nets of the tests are tiny: threads would wait for each other longer than they compute, on a busy
# machine many times as long. This must stand before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers yield to all other processes; beside a busy one they would hardly get on.
os.environ.setdefault("RAY_worker_niceness", "0")
# On a busy machine Ray Serve's proxy is not ready within 5 seconds (see ppt/distributed/serve.py).
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

if TYPE_CHECKING:  # torch and Ray are imported by the tests that need them
    from ppt.distributed.actors import ActorPool
    from ppt.tracking.record import RunRecord


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    import logging

    import ray

    for attempt in range(3):
        try:
            ray.init(
                address="local",  # not whatever cluster runs here
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            break
        except Exception as error:  # on a busy machine Ray gives up after 30 seconds
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == 2:
                raise
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def pool(cluster: None) -> Iterator[ActorPool]:
    """Two actors, which start when they are first needed: each has to import torch."""
    from ppt.config import Resources
    from ppt.distributed.actors import ActorPool

    pool = ActorPool(Resources(num_actors=2, cpus_per_actor=0.05))  # beside whatever else runs
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def finished(store: Path) -> RunRecord:
    """The small curriculum, run to its end in this process."""
    from common import run_here, small

    return run_here(small(store))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """The tiny curriculum, run to its end in this process: what runs on Ray is compared with it."""
    from common import run_here, tiny

    folder = tmp_path_factory.mktemp("tiny")
    return run_here(tiny(folder, folder / "runs"))


@pytest.fixture
def browser() -> Any:
    """The module that looks at pages in Chromium; without one the test is skipped."""
    pytest.importorskip("websockets", reason="needs the extra serve")
    found = pytest.importorskip("browser")
    if found.CHROMIUM is None:
        pytest.skip("needs Chromium")
    return found

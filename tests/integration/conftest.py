"""A real local Ray, and one small run of the whole curriculum that many tests look at."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ppt.config import Curriculum, load_curriculum
from ppt.pipeline.curriculum import run_curriculum
from ppt.pipeline.record import RunRecord

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"

SMALL = [  # the quickstart with a few pictures: every step, every source, seconds each
    "name=small",
    "num_buckets=3",
    "data.referring.num_pictures=30",
    "data.object_centric.num_pictures=32",
    "data.validation.num_pictures=6",
    "data.evaluation.num_pictures=12",
    "synthesis.num_pictures=20",
    "stages.semantic_alignment.num_epochs=2",
    "stages.ris_object_centric.num_epochs=2",
    "stages.ris_joint.num_epochs=1",
    "stages.domain_refinement.num_epochs=1",
    "stages.domain_refinement.rounds=1",
    "resources.num_workers=2",
]


def small(store: Path | str, *overrides: str) -> Curriculum:
    path = ROOT / "curricula" / "quickstart.yaml"
    return load_curriculum(path, [*SMALL, f"store={store}", *overrides])


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",  # not whatever cluster runs here
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def finished(cluster: None, store: Path) -> RunRecord:
    """The small curriculum, run to its end."""
    return run_curriculum(small(store))

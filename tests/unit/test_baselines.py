"""CLIP + SAM as published, with similarity maps at the published size and at that of the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from common import small

from ppt.config import ConfigError
from ppt.curriculum.finished import evaluate_curriculum
from ppt.models import loaded
from ppt.steps.local_runner import LocalRunner
from ppt.store.nodes import Store
from ppt.tracking.record import RunRecord

CLIP = {"name": "ViT-S-32-alt", "weights": "random", "taps": [4, 8, 12], "templates": ["a {}"]}

TOYBOX = ["model.clip.name=toybox", "model.clip.weights=null", "model.clip.taps=null"]


@pytest.fixture(scope="module", autouse=True)
def models_are_let_go() -> Iterator[None]:
    yield
    loaded.image_text_encoder.cache_clear()


def measured(folder: Path, *overrides: str) -> RunRecord:
    """The baselines on 3 pictures, by a CLIP with random weights."""
    clip = [f"model.clip.{key}={value}" for key, value in CLIP.items()]
    few = ["data.validation.num_pictures=2", "data.evaluation.num_pictures=3", "num_buckets=2"]
    curriculum = small(folder, *few, *clip, *overrides)
    runner = LocalRunner(Store(curriculum.store), curriculum.resources)
    return evaluate_curriculum(curriculum, runner, stage="clip_sam_best")


def test_the_published_baseline_alone_has_the_published_size(tmp_path: Path) -> None:
    both = measured(tmp_path, "model.clip.image_size=64", "published_image_size=128")
    large = measured(tmp_path, "model.clip.image_size=128")
    plain = measured(tmp_path, "model.clip.image_size=64")

    def rows(record: RunRecord) -> list[dict]:
        return record.results("clip_sam_published").read_all().to_pylist()

    assert rows(both) == rows(large) != rows(plain)
    assert both.results("clip_sam_best").digest == plain.results("clip_sam_best").digest
    numbers = {max(len(row["points"]) // 2 for row in rows(r)) for r in (both, plain)}
    assert numbers == {4, 1}  # maps of 4 x 4 and 2 x 2 patches give points on 2 x 2 and 1 x 1 cells


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["published_image_size=100"], "published_image_size must be a multiple of 32, got 100"),
        ([*TOYBOX, "published_image_size=512"], "published_image_size must be 96, "),
    ],
)
def test_a_wrong_size_is_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        measured(tmp_path, *overrides)

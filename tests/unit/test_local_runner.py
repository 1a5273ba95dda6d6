"""The device on which the local runner computes, which the resources say as they do on Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from common import QUICKSTART

from ppt.config import ConfigError, Resources, Stage, load_curriculum
from ppt.models.loaded import current_device, threads
from ppt.steps import local_runner
from ppt.steps.local_runner import LocalRunner, check_training
from ppt.steps.step import Step
from ppt.store.nodes import DATA, BucketOutput, Store
from ppt.training.stage import StageTraining


@dataclass(frozen=True)
class NoteDevice(Step):
    """A table that holds the name of the device on which it was made."""

    kind = "device"
    command = "test"
    title = "note the device"
    buckets = 1

    def spec(self) -> Mapping[str, Any]:
        return {}

    def __call__(self, bucket: int) -> BucketOutput:
        return BucketOutput({DATA: pa.table({"device": [current_device()]})})


@pytest.fixture(autouse=True)
def with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("ppt.models.loaded._device", "cpu")


def step_device(folder: Path, resources: Resources) -> str:
    node = LocalRunner(Store(str(folder)), resources).run(NoteDevice())
    return node.read_all()["device"][0].as_py()


def test_a_step_uses_a_gpu_if_the_actors_ask_for_one(tmp_path: Path) -> None:
    assert step_device(tmp_path / "gpu", Resources(gpus_per_actor=0.5)) == "cuda"
    assert step_device(tmp_path / "cpu", Resources(gpus_per_worker=1)) == "cpu"


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "cuda")])
def test_a_training_uses_a_gpu_if_the_workers_ask_for_one(
    gpus: float, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Built(Exception):
        pass

    def build(stage: StageTraining, device: str, checkpoint: object) -> None:
        raise Built(device)

    monkeypatch.setattr(local_runner, "build_worker", build)
    resources = Resources(gpus_per_worker=gpus, gpus_per_actor=1 - gpus)
    curriculum = load_curriculum(QUICKSTART)
    stage = StageTraining(
        name="s",
        stage=Stage(sources={"h_sem": 1}, num_epochs=1),
        training=curriculum.training,
        model=curriculum.model,
        tables=(),
        initial=None,
        seed=0,
        resources=resources,
    )
    with pytest.raises(Built, match=device):
        LocalRunner(Store(str(tmp_path)), resources).train(stage, lambda losses: None)


def test_adam_is_not_part_of_a_digest(tmp_path: Path) -> None:
    """So checkpoints of Adam from before there was a choice stay valid."""
    curriculum = load_curriculum(QUICKSTART)

    def spec(optimizer: str) -> dict[str, object]:
        stage = StageTraining(
            name="s",
            stage=Stage(sources={"h_sem": 1}, num_epochs=1),
            training=curriculum.training.model_copy(update={"optimizer": optimizer}),
            model=curriculum.model,
            tables=(),
            initial=None,
            seed=0,
            resources=Resources(),
        )
        return stage.node(Store(str(tmp_path))).made_from["spec"]["training"]

    assert "optimizer" not in spec("adam")
    assert spec("muon") == {**spec("adam"), "optimizer": "muon"}


def test_a_gpu_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"gpus_per_actor asks for a GPU, got 0\.5.*actor=0 to"):
        step_device(tmp_path, Resources(gpus_per_actor=0.5))
    with pytest.raises(ConfigError, match="gpus_per_worker asks for a GPU, got 1,.*worker=0 to"):
        check_training(Resources(gpus_per_worker=1))
    check_training(Resources(gpus_per_actor=1))


@pytest.mark.parametrize(("cpus", "number"), [(0.1, 1), (1.0, 1), (1.2, 2), (3.0, 3)])
def test_a_cpu_that_is_begun_counts_as_a_thread(cpus: float, number: int) -> None:
    before = torch.get_num_threads()
    with threads(cpus):
        assert torch.get_num_threads() == number
    assert torch.get_num_threads() == before

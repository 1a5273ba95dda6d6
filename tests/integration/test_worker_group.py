"""The training workers of a run on a real local Ray: they stay, are killed, and are interrupted."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
from common import PATIENCE, tiny

from ppt.config import Curriculum
from ppt.curriculum.run import run_curriculum
from ppt.distributed.ray_runner import RayRunner
from ppt.store.checkpoint_files import GENERATOR, METADATA, OPTIMIZER
from ppt.store.nodes import Node, Store
from ppt.tracking.record import RunRecord
from ppt.training.stage import EpochMetrics, StageTraining, epochs_trained

FIRST, SECOND = "semantic_alignment", "ris_joint"


def workers() -> list[psutil.Process]:
    """The processes of training workers that this process's Ray has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "ray::RayTrainWorker" in process.cmdline()[:1]:
                found.append(process)
    return found


Look = Callable[[str, int], None]
"""What a test does when it hears of an epoch: it gets the name of the stage and the number."""


class Watching(RayRunner):
    """Notes which worker trained each epoch of a stage, and lets a test look on."""

    def __init__(self, curriculum: Curriculum, look: Look) -> None:
        super().__init__(Store(curriculum.store), curriculum.resources)
        self.look = look
        self.pids = defaultdict[str, list[int]](list)

    def train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        def watched(losses: EpochMetrics) -> None:
            on_epoch(losses)
            self.pids[stage.name] += [process.pid for process in workers()]
            self.look(stage.name, int(losses["epoch"]))

        return super().train(stage, watched)


@pytest.fixture
def curriculum(cluster: None, tiny_run: RunRecord, tmp_path: Path) -> Curriculum:
    """The tiny curriculum with a copy of its finished store, but for the checkpoints."""
    shutil.copytree(Path(tiny_run.curriculum.store, "store"), tmp_path / "runs" / "store")
    shutil.rmtree(tmp_path / "runs" / "store" / "checkpoints")
    return tiny(tmp_path, tmp_path / "runs")


def run(
    curriculum: Curriculum, look: Look = lambda stage, epoch: None
) -> tuple[RunRecord, dict[str, list[int]]]:
    """The record of a run, and the process that trained each epoch of a stage."""
    runner = Watching(curriculum, look)
    try:
        return run_curriculum(curriculum, runner), runner.pids
    finally:
        runner.close()


def assert_same_bytes(record: RunRecord, other: RunRecord) -> None:
    for stage in record.stages:
        theirs = other.stage(stage.name).checkpoint
        for name in (GENERATOR, OPTIMIZER, METADATA):
            ours = Path(stage.checkpoint.path(name)).read_bytes()
            assert ours == Path(theirs.path(name)).read_bytes(), (stage.name, name)


def test_workers_stay_for_the_next_stage_unless_one_was_lost(
    curriculum: Curriculum, tiny_run: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill(stage: str, epoch: int) -> None:
        if (stage, epoch) == (SECOND, 1):
            workers()[0].kill()

    record, pids = run(curriculum, kill)
    (first,), (same, *others) = pids[FIRST], pids[SECOND]
    assert same == first and others and first not in others
    assert "they continue after epoch 1" in " ".join(capsys.readouterr().err.split())
    assert epochs_trained(record.stages[1].checkpoint) == 3  # none of them twice
    assert_same_bytes(record, tiny_run)
    assert not workers()


def test_an_interrupted_training_gives_back_what_it_held(
    curriculum: Curriculum, tiny_run: RunRecord
) -> None:
    def interrupt(stage: str, epoch: int) -> None:
        if (stage, epoch) == (SECOND, 1):
            raise KeyboardInterrupt

    free = ray.available_resources()["CPU"]  # others use this cluster too
    with pytest.raises(KeyboardInterrupt):
        run(curriculum, interrupt)
    deadline = time.monotonic() + PATIENCE
    while workers() or ray.available_resources()["CPU"] < free - 1e-3:
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)
    record, _ = run(curriculum)
    assert_same_bytes(record, tiny_run)

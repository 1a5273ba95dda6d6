"""Made anew when asked, gone on with when interrupted: a finished run's stages, without Ray."""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from common import QUICKSTART, ROOT, SMALL, here, nodes_of, run_here, small
from typer.testing import CliRunner

from ppt.config import ConfigError
from ppt.curriculum.run import run_curriculum, run_curriculum_again
from ppt.jobs.cli import app
from ppt.steps.local_runner import LocalRunner
from ppt.store.checkpoint_files import GENERATOR, METADATA, OPTIMIZER
from ppt.store.nodes import Node, Store
from ppt.tracking.record import RunRecord
from ppt.training import loop
from ppt.training import stage as training_stage
from ppt.training.loop import train_one_epoch
from ppt.training.stage import EPOCHS, EpochMetrics, StageTraining, epoch_node, epochs_trained

CHECKPOINT = (GENERATOR, OPTIMIZER, METADATA)


@pytest.fixture
def copied(finished: RunRecord, store: Path, tmp_path: Path) -> Path:
    """The finished run's store, with the times of its files, for a test to change."""
    shutil.copytree(store / "store", tmp_path / "runs" / "store")
    return tmp_path / "runs"


def written(store: Path, record: RunRecord) -> dict[str, dict[str, int]]:
    """By the name of a node of a run, its files with the times when they were written."""
    return {
        name: {
            path.name: path.stat().st_mtime_ns
            for path in (store / "store" / node.kind / node.digest).iterdir()
        }
        for name, node in nodes_of(record).items()
    }


def made_anew(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> set[str]:
    """The nodes of which every file was written again; the others are as they were."""
    anew = {name for name in before if after[name] != before[name]}
    for name in anew:
        assert min(after[name].values()) > max(before[name].values()), name
    return anew


def content(node: Node) -> list[bytes]:
    return [Path(node.path(name)).read_bytes() for name in CHECKPOINT]


FOLLOWING = ("ris_joint", "domain_refinement")


def test_a_stage_again_and_all_that_follows_from_it(finished: RunRecord, copied: Path) -> None:
    for name in ("ris_joint", "domain_refinement"):  # neither training is gone on with
        trained = finished.stage(name).checkpoint
        store = Store(str(copied))
        training = Node(store, trained.kind, trained.digest, trained.made_from)
        left = epoch_node(training, 1)
        left.write_manifest(checksums={METADATA: left.write_bytes(METADATA, b"of another code")})
    selected = finished.selected[-1]  # what follows may be half done, too
    (copied / "store" / selected.kind / selected.digest / "manifest.json").unlink()
    before = written(copied, finished)
    command = ["train", str(QUICKSTART), *SMALL, f"store={copied}", "--local"]
    result = CliRunner().invoke(app, [*command, "--again", "ris_joint"])
    assert result.exit_code == 0, result.output
    assert made_anew(before, written(copied, finished)) == {
        *("checkpoints.ris_joint", "results.ris_joint", "labels.h.2"),
        *("checkpoints.domain_refinement", "results.domain_refinement"),
        *(f"evidence.{on}{s}" for on in ("", "evaluation.") for s in FOLLOWING),
    }
    for stage in finished.stages:  # the same code, so the same numbers
        again = copied / "store" / "checkpoints" / stage.checkpoint.digest
        assert [(again / name).read_bytes() for name in CHECKPOINT] == content(stage.checkpoint)


def test_a_command_again(finished: RunRecord, copied: Path) -> None:
    before, curriculum = written(copied, finished), small(copied)
    run_curriculum_again(curriculum, here(curriculum), "evaluate")
    results = {name for name in before if name.startswith(("results.", "evidence."))}
    assert len(results) == 2 + 4 + 2 * 4
    assert made_anew(before, written(copied, finished)) == results


def test_a_wrong_name_to_make_again_is_the_users_mistake(finished: RunRecord, store: Path) -> None:
    before = written(store, finished)
    command = ["train", str(QUICKSTART), *SMALL, f"store={store}", "--local", "--again", "ris"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    told = " ".join(result.output.split())
    assert "--again: this curriculum has prepare, encode, label, synthesise, select" in told
    assert "ris_joint, domain_refinement, got 'ris'" in told
    assert written(store, finished) == before


def test_a_new_version_of_the_training_code_trains_anew(
    finished: RunRecord, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_stage, "VERSION", training_stage.VERSION + 1)
    curriculum = small(copied)
    with pytest.raises(ConfigError, match="'semantic_alignment' is not trained as"):
        run_here(curriculum, train=False)
    first = dict(list(curriculum.stages.items())[:1])
    before = written(copied, finished)
    record = run_here(curriculum.model_copy(update={"stages": first}))
    assert written(copied, finished) == before  # what the former code trained is still there
    old, new = finished.stages[0].checkpoint, record.stages[0].checkpoint
    assert new.digest != old.digest
    assert content(new) == content(old)  # for in truth the code is the same
    assert record.data["referring"].labels.digest == finished.data["referring"].labels.digest


class _Mortal(LocalRunner):
    """Ends, as by Ctrl-C, after the first epoch of a stage."""

    def train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        def die(losses: EpochMetrics) -> None:
            on_epoch(losses)
            if stage.name == "ris_object_centric":
                self.iterations = stage.plan().num_iterations
                raise KeyboardInterrupt

        return super().train(stage, die)


def test_a_training_that_was_interrupted_ends_in_the_same_bytes(
    finished: RunRecord, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curriculum, stages = small(copied), finished.stages[1:]
    for stage in stages:
        shutil.rmtree(copied / "store" / "checkpoints" / stage.checkpoint.digest)
    runner = _Mortal(here(curriculum).store, curriculum.resources)
    with pytest.raises(KeyboardInterrupt):
        run_curriculum(curriculum, runner)
    (kept,) = (node for node in Store(str(copied)).complete_nodes() if node.kind == EPOCHS)
    assert kept.made_from["parents"] == {"training": stages[0].checkpoint.digest}
    assert kept.made_from["spec"] == {"stage": "ris_object_centric", "epoch": 1}
    capsys.readouterr()
    kept.write_manifest(checksums=kept.manifest()["checksums"], seconds=1000.0)

    record = run_here(curriculum)
    assert record.stages[1].history == stages[0].history
    assert 1000.0 < record.stages[1].seconds < 2000.0
    told = capsys.readouterr().err
    assert "train ris_object_centric: goes on after epoch 1\n" in told
    assert "train ris_object_centric, epoch 1" not in told
    iterations = re.findall(r"✓ train ris_object_centric: (\d+) iter", told)
    assert iterations == [str(runner.iterations)]  # of the second of two epochs
    assert epochs_trained(record.stages[1].checkpoint) == 2  # the first was not trained twice
    for again, stage in zip(record.stages[1:], stages, strict=True):
        assert content(again.checkpoint) == content(stage.checkpoint), stage.name
    assert not list((copied / "store" / EPOCHS).iterdir())


WRAPPERS = {"ppt/steps/runner.py", "ppt/steps/uses.py"}
"""Files with runners that leave the work to another runner, such as `Repairing` and `Noting`."""


def test_from_the_command_to_the_training_iteration_in_four_files(
    finished: RunRecord, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "store" / "checkpoints" / finished.stages[-1].checkpoint.digest)
    stacks = []

    def recorded(*args: Any, **kwargs: Any) -> dict[str, float]:
        stacks.append(traceback.extract_stack())
        return train_one_epoch(*args, **kwargs)

    monkeypatch.setattr(loop, "train_one_epoch", recorded)
    command = ["train", str(QUICKSTART), *SMALL, f"store={copied}", "--local"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    (stack,) = stacks
    paths = [Path(frame.filename).resolve() for frame in stack]  # ppt/jobs is a link to jobs/
    inside = [str(path.relative_to(ROOT)) for path in paths if path.is_relative_to(ROOT)]
    files = [path for path in dict.fromkeys(inside) if path.startswith(("jobs/", "ppt/"))]
    assert [file for file in files[files.index("jobs/train.py") :] if file not in WRAPPERS] == [
        *("jobs/train.py", "ppt/curriculum/run.py"),
        *("ppt/steps/local_runner.py", "ppt/training/loop.py"),
    ]


def test_a_local_run_trains_with_one_worker(finished: RunRecord, store: Path) -> None:
    """Two workers order the sums otherwise, and the digest names their number."""
    with pytest.raises(ConfigError, match=r"num_workers must be 1 to train .* got 2"):
        run_here(small(store, "resources.num_workers=2", "name=two-workers"))

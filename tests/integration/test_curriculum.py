"""One curriculum, end to end, on a real local Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import small
from safetensors.numpy import load_file

from ppt.config import ConfigError
from ppt.pipeline.curriculum import run_curriculum, select_after
from ppt.pipeline.record import RunRecord
from ppt.pipeline.summary import summarise
from ppt.store import Node

STAGES = ["semantic_alignment", "ris_object_centric", "ris_joint", "domain_refinement"]


def _files(store: Path) -> dict[str, int]:
    """Every stored file with the time it was written."""
    return {str(p): p.stat().st_mtime_ns for p in (store / "store").rglob("*") if p.is_file()}


def test_the_summary_tells_every_stage(finished: RunRecord) -> None:
    summary = json.loads((Path(finished.folder) / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == STAGES
    assert [stage["epochs"] for stage in summary["stages"]] == [2, 2, 1, 1]
    for row in [*summary["stages"], *summary["baselines"].values()]:
        for key in ("mIoU", "oIoU", "P@0.3", "P@0.5", "P@0.7", "P@0.9"):
            assert 0 <= row[key] <= 100
    assert set(summary["baselines"]) == {"clip_sam_published", "clip_sam_best"}
    assert summary["seed"] == 0
    assert {"ray", "torch", "python"} <= set(summary["versions"])


def test_every_step_accounts_for_every_row(finished: RunRecord) -> None:
    counts = summarise(finished)["counts"]
    assert counts
    for step, count in counts.items():
        assert count["in"] == count["out"] + count["quarantined"], step
    assert finished.nodes["samples.referring"].counts()["pictures"]["in"] == 30


def test_each_picture_is_encoded_once(finished: RunRecord) -> None:
    summary = summarise(finished)
    assert summary["encoder_calls"] == summary["unique_pictures"] == 30 + 32 + 6 + 12 + 20


def test_labels_fall_into_the_papers_sources(finished: RunRecord) -> None:
    for row in finished.nodes["labels.d_sem"].read_all().to_pylist():
        assert row["source"] == "d_sem"
        assert [c["is_referent"] for c in row["candidates"]] == [1.0]
    sources = set()
    for row in finished.nodes["labels.h"].read_all().to_pylist():
        sources.add(row["source"])
        scores = [c["is_referent"] for c in row["candidates"]]
        assert scores == ([1.0] if row["source"] == "h_sem" else [0.0] * len(scores))
        assert (row["source"] == "h_ref") == (len(scores) > 1)
    assert sources == {"h_sem", "h_ref"}
    for row in finished.nodes["labels.d_ref"].read_all("labels").to_pylist():
        assert sum(c["is_referent"] for c in row["candidates"]) == 1.0
        assert len(row["candidates"]) > 1  # context objects beside the referent


def test_select_chooses_one_referent_and_leaves_h_sem(finished: RunRecord) -> None:
    before, after = (
        finished.nodes[name].read_all().to_pylist() for name in ("labels.h", "labels.h.1")
    )
    assert len(before) == len(after)
    assert sum(row["source"] == "h_ref" for row in after) > 10
    for old, new in zip(before, after, strict=True):
        scores = [c["is_referent"] for c in new["candidates"]]
        if old["source"] == "h_sem":
            assert new == old
        elif new["source"] == "undecided":  # no query lies on any candidate
            assert not any(scores)
        else:
            assert sorted(scores) == [0.0] * (len(scores) - 1) + [1.0]


def test_training_changes_the_generator_from_stage_to_stage(finished: RunRecord) -> None:
    digests = set()
    for stage in finished.stages:
        weights = load_file(stage.checkpoint.path("generator.safetensors"))
        assert "queries" in weights
        digests.add(weights["queries"].tobytes())
    assert len(digests) == len(STAGES)


def test_a_second_run_writes_nothing(finished: RunRecord, store: Path) -> None:
    before = _files(store)
    again = run_curriculum(small(store))
    assert _files(store) == before
    assert [s.metrics for s in again.stages] == [s.metrics for s in finished.stages]
    assert [s.history for s in again.stages] == [s.history for s in finished.stages]


@pytest.mark.parametrize(
    ("name", "file"),
    [("features.referring", "data-00001.arrow"), ("labels.h", "data-00002.parquet")],
)
def test_a_deleted_bucket_is_made_again_alone(
    finished: RunRecord, store: Path, name: str, file: str
) -> None:
    node: Node = finished.nodes[name]
    content = Path(node.path(file)).read_bytes()
    before = _files(store)
    Path(node.path(file)).unlink()
    run_curriculum(small(store), until="label")
    after = _files(store)
    bucket = file.split("-")[1].split(".")[0]
    changed = {Path(path).name for path in after if after[path] != before.get(path)}
    assert {file, "manifest.json"} <= changed
    assert all(bucket in name for name in changed - {"manifest.json"})
    assert Path(node.path(file)).read_bytes() == content


def test_a_longer_last_stage_shares_the_stages_before(finished: RunRecord, store: Path) -> None:
    longer = small(store, "stages.domain_refinement.num_epochs=2")
    with pytest.raises(
        ConfigError, match="'domain_refinement' is not trained yet: run `ppt train`"
    ):
        run_curriculum(longer, train=False)  # all before it are found


def test_select_after_a_trained_stage(finished: RunRecord, store: Path) -> None:
    labels = select_after(small(store), "ris_object_centric")
    assert labels.digest == finished.nodes["labels.h.1"].digest
    with pytest.raises(ConfigError, match="trains .*ris_joint.*, got 'nothing'"):
        select_after(small(store), "nothing")


def test_another_seed_is_another_run(finished: RunRecord, store: Path) -> None:
    record = run_curriculum(small(store, "seed=1", "name=other"), until="prepare")
    name = "samples.object_centric"  # flips are drawn by the seed
    assert record.nodes[name].digest != finished.nodes[name].digest


def test_a_store_that_is_removed_is_made_equal(finished: RunRecord, tmp_path: Path) -> None:
    """Nothing depends on where the store lies: the same digests and bytes anywhere."""
    record = run_curriculum(small(tmp_path), until="label")
    for name in ("samples.d_ref", "labels.h", "features.d_ref"):
        assert record.nodes[name].digest == finished.nodes[name].digest
    for bucket in range(3):
        ours = record.nodes["labels.h"].read(bucket)
        assert ours.equals(finished.nodes["labels.h"].read(bucket))
    shutil.rmtree(tmp_path)

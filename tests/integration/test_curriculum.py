"""One curriculum, end to end, in this process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from common import figures, here, nodes_of, run_here, small
from safetensors.numpy import load_file

from ppt.config import ConfigError
from ppt.curriculum.finished import select_after
from ppt.curriculum.inputs import check_sources
from ppt.tracking.record import RunRecord
from ppt.tracking.summary import summarise

STAGES = ["semantic_alignment", "ris_object_centric", "ris_joint", "domain_refinement"]


def _files(store: Path) -> dict[str, int]:
    """Every stored file with the time it was written."""
    return _written(store / "store")


def _written(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


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
    assert finished.data["referring"].samples.counts()["pictures"]["in"] == 30


def test_each_picture_is_encoded_once(finished: RunRecord) -> None:
    summary = summarise(finished)
    assert summary["encoded_pictures"] == summary["unique_pictures"] == 30 + 32 + 6 + 12 + 20


def test_labels_fall_into_the_papers_sources(finished: RunRecord) -> None:
    for row in finished.data["object_centric"].labels.read_all().to_pylist():
        assert row["source"] == "d_sem"
        assert [c["is_referent"] for c in row["candidates"]] == [1.0]
    sources = set()
    for row in finished.data["referring"].labels.read_all().to_pylist():
        sources.add(row["source"])
        scores = [c["is_referent"] for c in row["candidates"]]
        assert scores == ([1.0] if row["source"] == "h_sem" else [0.0] * len(scores))
        assert (row["source"] == "h_ref") == (len(scores) > 1)
    assert sources == {"h_sem", "h_ref"}
    for row in finished.data["d_ref"].labels.read_all("labels").to_pylist():
        assert sum(c["is_referent"] for c in row["candidates"]) == 1.0
        assert len(row["candidates"]) > 1  # context objects beside the referent


def test_select_chooses_one_referent_and_leaves_h_sem(finished: RunRecord) -> None:
    before, after, last = (node.read_all().to_pylist() for node in finished.rounds())
    assert len(before) == len(after)
    several = 0
    for old, new in zip(before, after, strict=True):
        assert new["source"] == old["source"]
        scores = [c["is_referent"] for c in new["candidates"]]
        if old["source"] == "h_sem" or not any(scores):  # no query lies on any candidate
            assert new == old
        else:
            assert sorted(scores) == [0.0] * (len(scores) - 1) + [1.0]
            several += 1
    assert several > 10
    info = finished.selected[0].info()
    assert info["selected"] == several
    assert info["selected"] + info["unselected"] == sum(r["source"] == "h_ref" for r in before)
    for old, new in zip(after, last, strict=True):  # whoever is not selected again stays
        if any(c["is_referent"] for c in old["candidates"]):
            assert sum(c["is_referent"] for c in new["candidates"]) == 1.0


def test_training_changes_the_generator_from_stage_to_stage(finished: RunRecord) -> None:
    digests = set()
    for stage in finished.stages:
        weights = load_file(stage.checkpoint.path("generator.safetensors"))
        assert "queries" in weights
        digests.add(weights["queries"].tobytes())
    assert len(digests) == len(STAGES)


def test_a_second_run_writes_nothing(finished: RunRecord, store: Path) -> None:
    before = _files(store)
    again = run_here(small(store))
    assert _files(store) == before
    assert figures(again) == figures(finished)


@pytest.mark.parametrize(
    ("name", "file"),
    [("features.referring", "data-00001.arrow"), ("labels.h", "data-00002.parquet")],
)
def test_a_deleted_bucket_is_made_again_alone(
    finished: RunRecord, store: Path, name: str, file: str
) -> None:
    node = nodes_of(finished)[name]
    content = Path(node.path(file)).read_bytes()
    before = _files(store)
    Path(node.path(file)).unlink()
    run_here(small(store), until="label")
    after = _files(store)
    bucket = file.split("-")[1].split(".")[0]
    changed = {Path(path).name for path in after if after[path] != before.get(path)}
    assert {file, "manifest.json"} <= changed
    assert all(bucket in name for name in changed - {"manifest.json"})
    assert Path(node.path(file)).read_bytes() == content


def test_a_longer_last_stage_shares_the_stages_before(finished: RunRecord, store: Path) -> None:
    longer = small(store, "stages.domain_refinement.num_epochs=2")
    before = _written(Path(finished.folder))
    with pytest.raises(
        ConfigError, match="'domain_refinement' is not trained as .*: run `ppt train`"
    ):
        run_here(longer, train=False)  # all before it are found
    assert _written(Path(finished.folder)) == before  # neither files nor MLflow's runs


def test_select_after_a_trained_stage(finished: RunRecord, store: Path) -> None:
    curriculum = small(store)
    labels = select_after(curriculum, here(curriculum), "ris_object_centric")
    assert labels.digest == finished.selected[0].digest
    with pytest.raises(ConfigError, match="trains .*ris_joint.*, got 'nothing'"):
        select_after(curriculum, here(curriculum), "nothing")


def test_another_seed_shares_all_but_the_training(finished: RunRecord, store: Path) -> None:
    other = small(store, "seed=1", "name=other")
    record = run_here(other, until="label")
    ours, theirs = nodes_of(finished), nodes_of(record)
    assert {name: node.digest for name, node in theirs.items()} == {
        name: node.digest for name, node in ours.items() if name in theirs
    }
    assert {"samples.d_ref", "labels.d_sem", "labels.h"} <= theirs.keys()
    with pytest.raises(ConfigError, match="'semantic_alignment' is not trained as"):
        run_here(other, train=False)


def test_a_store_that_is_removed_is_made_equal(finished: RunRecord, tmp_path: Path) -> None:
    """Nothing depends on where the store lies: the same digests and bytes anywhere."""
    record = run_here(small(tmp_path), until="label")
    ours = nodes_of(finished)
    for name, node in nodes_of(record).items():
        assert node.digest == ours[name].digest, name
        for file in Path(node.folder).glob("data-*"):
            assert file.read_bytes() == Path(ours[name].path(file.name)).read_bytes(), file


def test_weights_that_leave_no_sample_are_told_before_a_training(finished: RunRecord) -> None:
    check_sources(finished)
    stages = dict(finished.curriculum.stages)
    few = {"h_sem": 1e-4, "d_sem": 1e-4}
    stages["ris_joint"] = stages["ris_joint"].model_copy(update={"sources": few})
    curriculum = finished.curriculum.model_copy(update={"stages": stages})
    with pytest.raises(ConfigError, match=r"stages.ris_joint.sources leaves no sample.*h_sem \("):
        check_sources(replace(finished, curriculum=curriculum))

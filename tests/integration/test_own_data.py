"""One's own tables and mini-ImageNet's layout through prepare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from common import DATA, run_here, small

from ppt.config import ConfigError
from ppt.tracking.summary import summarise

PHOTOS = sorted((DATA / "miniref" / "images" / "train2014").glob("*.jpg"))[:3]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Three photographs, one broken; a table to train on and one with polygons."""
    folder = tmp_path / "own"
    folder.mkdir()
    for photo in PHOTOS:
        shutil.copy(photo, folder)
    whole, other, broken = (photo.name for photo in PHOTOS)
    (folder / broken).write_bytes(PHOTOS[2].read_bytes()[:2000])
    (folder / "train.csv").write_text(
        "picture,expression\n"
        f"{whole},the one on the left\n{whole},the big one\n{whole},  \n"
        f"{other},a red one\n{broken},never seen\ngone.jpg,never seen\n"
    )
    rows = [
        {"picture": whole, "expression": "it", "polygon": [10, 10, 90, 10, 90, 90]},
        {"picture": whole, "expression": "that", "polygon": [10, 10, 90, 10]},
    ]
    lines = [*map(json.dumps, rows), "{broken"]
    (folder / "truth.jsonl").write_text("\n".join(lines))
    return folder


def _write_mini_imagenet(root: Path) -> Path:
    sample = DATA / "imagenet-sample"
    (root / "images").mkdir(parents=True)
    shutil.copy(sample / "LOC_synset_mapping.txt", root)
    rows = []
    for photo in sorted(sample.glob("train/*/*.JPEG"))[:4]:
        shutil.copy(photo, root / "images")
        rows.append(f"{photo.name},{photo.parent.name}")
    rows.append("n0144076400000009.jpg,n01440764")
    (root / "train.csv").write_text("\n".join(["filename,label", *rows]))
    return root


def test_own_data_is_read_and_counted(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mini = _write_mini_imagenet(own / "mini")
    curriculum = small(
        own / "runs",
        f"data.referring={{format: table, path: {own / 'train.csv'}}}",
        f"data.evaluation={{format: table, path: {own / 'truth.jsonl'}}}",
        f"data.object_centric={{format: mini_imagenet, root: {mini}, split: train}}",
        "data.object_centric.max_pictures=2836",
    )
    record = run_here(curriculum, until="prepare")
    summary = summarise(record)
    counts = {step: (n["in"], n["out"], n["quarantined"]) for step, n in summary["counts"].items()}
    assert counts["prepare.referring.pictures"] == (4, 2, 2)
    assert counts["prepare.referring.expressions"] == (6, 3, 3)
    assert counts["prepare.object_centric.pictures"] == (5, 4, 1)
    assert counts["prepare.evaluation.pictures"] == (2, 1, 1)
    assert counts["prepare.evaluation.expressions"] == (3, 2, 1)
    assert counts["ground_truth.evaluation.expressions"] == (2, 1, 1)
    reasons = " ".join(row["reason"] for row in summary["quarantine"])
    for reason in ("truncated", "gone.jpg is missing", "no word", "2 points", "line 3 is no JSON"):
        assert reason in reasons
    names = {row["class_name"] for row in _rows(record, "object_centric")}
    assert len(names) == 4 and not any(name.startswith("n0") for name in names)
    assert "only 5 are there" in capsys.readouterr().err


def _rows(record, name: str) -> list[dict]:
    return record.data[name].samples.read_all(columns=["class_name"]).to_pylist()


def test_an_evaluation_without_truth_is_told_before_anything_runs(own: Path) -> None:
    path = own / "train.csv"
    curriculum = small(own / "runs", f"data.evaluation={{format: table, path: {path}}}")
    with pytest.raises(ConfigError, match="no column 'mask' or 'polygon'"):
        run_here(curriculum, until="prepare")
    assert not (own / "runs").exists()


def test_a_partial_data_set_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = DATA / "miniref"
    curriculum = small(tmp_path, f"data.evaluation={{format: refer, root: {root}, split: testA}}")
    run_here(curriculum, until="prepare")
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("refcoco (unc) is partial: testA has") == 1
    assert "of 1975 published refs" in told

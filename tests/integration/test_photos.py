"""Real photographs through every step, broken ones quarantined, ground truth out of reach."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import DATA, ROOT, run_here
from PIL import Image

from ppt.config import Curriculum, load_curriculum
from ppt.tracking.summary import summarise

BROKEN_SPLIT = "testA"


def photos(store: Path, referring: Path, *overrides: str) -> Curriculum:
    """The photographs' curriculum with few object-centric ones and only its first stage."""
    curriculum = load_curriculum(
        ROOT / "curricula" / "photos.yaml",
        [
            f"store={store}",
            *(f"data.{n}.root={referring}" for n in ("referring", "validation", "evaluation")),
            f"data.object_centric.root={DATA / 'imagenet-sample'}",
            "data.object_centric.max_pictures=12",
            "synthesis.num_pictures=6",
            "resources.num_workers=1",
            *overrides,
        ],
    )
    first = dict(list(curriculum.stages.items())[:1])
    return curriculum.model_copy(update={"stages": first})


@pytest.fixture
def miniref(tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(DATA / "miniref", tmp_path / "miniref"))


def _edit_instances(root: Path) -> Iterator[dict]:
    path = root / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    yield instances
    path.write_text(json.dumps(instances))


def test_noise_for_ground_truth_changes_no_checkpoint(tmp_path: Path, miniref: Path) -> None:
    clean = run_here(photos(tmp_path / "clean", DATA / "miniref"))
    for instances in _edit_instances(miniref):
        for i, annotation in enumerate(instances["annotations"]):
            x, y = 5.0 + i % 7, 3.0 + i % 5
            annotation["segmentation"] = [[x, y, x + 40, y, x + 40, y + 30, x, y + 30]]
            annotation["bbox"] = [x, y, 40.0, 30.0]
            annotation["area"] = 1200.0
    noisy = run_here(photos(tmp_path / "noisy", miniref))
    ours, theirs = clean.stages[0], noisy.stages[0]
    assert ours.checkpoint.digest == theirs.checkpoint.digest
    weights = [
        Path(s.checkpoint.path("generator.safetensors")).read_bytes() for s in (ours, theirs)
    ]
    assert weights[0] == weights[1]
    assert ours.metrics != theirs.metrics  # the noise was really there

    summary = summarise(clean)
    for step, count in summary["counts"].items():
        assert count["in"] == count["out"] + count["quarantined"], step
    expressions = sum(
        summary["counts"][f"prepare.{name}.expressions"]["in"]
        for name in ("referring", "validation", "evaluation")
    )
    assert expressions == 76
    prepared = [n for step, n in summary["counts"].items() if step.startswith(("prepare", "gr"))]
    assert sum(count["quarantined"] for count in prepared) == 0


def test_broken_input_is_quarantined_and_nothing_else_is_lost(
    tmp_path: Path, miniref: Path
) -> None:
    whole = run_here(photos(tmp_path / "whole", DATA / "miniref"), until="prepare")
    refs_path = miniref / "refcoco" / "refs(unc).p"
    refs = pickle.loads(refs_path.read_bytes(), encoding="latin1")
    evaluated = [r for r in refs if r["split"] in ("testA", "testB")]
    trained = list(dict.fromkeys(r["image_id"] for r in refs if r["split"] == "train"))
    images = miniref / "images" / "train2014"

    truncated = images / f"COCO_train2014_{trained[0]:012d}.jpg"
    truncated.write_bytes(truncated.read_bytes()[:2000])
    tiny = images / f"COCO_train2014_{trained[1]:012d}.jpg"
    Image.new("RGB", (1, 1)).save(tiny)
    spaces = next(r for r in refs if r["image_id"] == trained[2])["sentences"][0]
    spaces |= {"sent": "   ", "raw": "   ", "tokens": []}
    refs_path.write_bytes(pickle.dumps(refs, protocol=2))
    two_points = evaluated[0]
    for instances in _edit_instances(miniref):
        for annotation in instances["annotations"]:
            if annotation["id"] == two_points["ann_id"]:
                annotation["segmentation"] = [[10.0, 10.0, 50.0, 50.0]]

    broken = run_here(photos(tmp_path / "broken", miniref), until="prepare")
    summary = summarise(broken)
    reasons = {
        row["picture"] + str(row["expression_id"]): row["reason"] for row in summary["quarantine"]
    }
    assert any("1x1" in reason for reason in reasons.values())
    assert any("truncated" in reason for reason in reasons.values())
    assert any("no word" in reason for reason in reasons.values())
    assert any("polygon" in reason for reason in reasons.values())

    before, after = summarise(whole)["counts"], summary["counts"]
    lost = [r for r in refs if r["split"] == "train" and r["image_id"] in trained[:2]]
    num_lost = sum(len(r["sentences"]) for r in lost) + 1
    for step in before:
        assert after[step]["in"] == before[step]["in"], step
        assert after[step]["in"] == after[step]["out"] + after[step]["quarantined"], step
    assert after["prepare.referring.pictures"]["quarantined"] == 2
    assert after["prepare.referring.expressions"]["quarantined"] == num_lost
    truth = after["ground_truth.evaluation.expressions"]
    assert truth["quarantined"] == len(two_points["sentences"])

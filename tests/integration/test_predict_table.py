"""`ppt predict` with a run that was really trained: one picture, and a table by the actor pool."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from typer.testing import CliRunner

from ppt.config import Resources
from ppt.images.masks import decode_rle, iou
from ppt.images.pictures import check_picture
from ppt.jobs.cli import app
from ppt.serving.predict_table import predict_table
from ppt.serving.predictor import Predictor
from ppt.serving.stored_checkpoint import open_checkpoint
from ppt.serving.zero_shot import ZeroShotPredictor, zero_shot
from ppt.steps.local_runner import LocalRunner
from ppt.toybox import world
from ppt.tracking.record import RunRecord


def _held_out(record: RunRecord, count: int) -> list[dict]:
    """Pictures of the evaluation split with their expressions."""
    return record.data["evaluation"].samples.read_all().to_pylist()[:count]


def _predict(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def test_the_same_as_the_evaluation_saw(finished: RunRecord) -> None:
    predictor = Predictor.from_checkpoint(finished.folder)
    last = finished.stages[-1]
    assert predictor.checkpoint.digest == last.checkpoint.digest
    stored = {row["expression_id"]: row for row in last.results.read_all().to_pylist()}
    for sample in _held_out(finished, 5):
        texts = [e["text"] for e in sample["expressions"]]
        found = predictor.predict(check_picture(sample["image"]), texts)
        for expression, prediction in zip(sample["expressions"], found, strict=True):
            row = stored[expression["expression_id"]]
            mask = decode_rle(row["mask"], sample["height"], sample["width"])
            assert iou(mask, prediction.mask) > 0.98 or not mask.any()
            np.testing.assert_allclose(prediction.points.flatten(), row["points"], atol=1e-3)
            assert prediction.score == pytest.approx(row["score"], abs=1e-3)


def test_without_training_it_is_the_published_baseline(finished: RunRecord) -> None:
    """The same points, masks and scores as `clip_sam_published` of the evaluation."""
    predictor = ZeroShotPredictor.of("toybox", "toybox", device="cpu")
    measured = finished.baselines["clip_sam_published"].results.read_all().to_pylist()
    stored = {row["expression_id"]: row for row in measured}
    for sample in _held_out(finished, 4):
        texts = [e["text"] for e in sample["expressions"]]
        found = predictor.predict(check_picture(sample["image"]), texts)
        for expression, prediction in zip(sample["expressions"], found, strict=True):
            row = stored[expression["expression_id"]]
            np.testing.assert_allclose(prediction.points.flatten(), row["points"], atol=1e-4)
            mask = decode_rle(row["mask"], sample["height"], sample["width"])
            assert iou(mask, prediction.mask) > 0.98 or not mask.any()
            assert prediction.score == pytest.approx(min(max(row["score"], 0), 1), abs=1e-2)


def test_one_picture(finished: RunRecord, tmp_path: Path) -> None:
    sample = _held_out(finished, 1)[0]
    (tmp_path / "photo.png").write_bytes(sample["image"])
    code, output = _predict(
        tmp_path / "photo.png",
        "The red car!",
        "boat",
        *("--checkpoint", finished.folder, "--stage", "ris_joint", "--out", tmp_path / "out"),
    )
    assert code == 0, output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    parts = (".png", ".mask.png", ".json")
    results = {f"photo-{t}{part}" for t in ("the-red-car", "boat") for part in parts}
    assert names == results | {"coco.results.json", "coco.images.json"}
    told = json.loads((tmp_path / "out" / "photo-boat.json").read_text())
    assert told["checkpoint"] == finished.stage("ris_joint").checkpoint.digest
    mask = np.asarray(Image.open(tmp_path / "out" / "photo-boat.mask.png"))
    np.testing.assert_array_equal(mask == 255, coco.decode(told["mask"]).astype(bool))
    assert f"'boat': score {told['score']:.2f}" in output


def test_a_table(finished: RunRecord, tmp_path: Path) -> None:
    lines = ["note,picture,expression"]
    samples = _held_out(finished, 2)
    for number, sample in enumerate(samples):
        (tmp_path / f"{number}.png").write_bytes(sample["image"])
        lines += [f'x,{number}.png,"{e["text"]}, please"' for e in sample["expressions"]]
    lines += ["x,gone.png,the car", "x,0.png,?!", "x,0.png,a car, red"]
    table, out = tmp_path / "pictures.csv", tmp_path / "out"
    table.write_text("\n".join(lines))
    command = ("--table", table, "--checkpoint", finished.folder, "--out", out)
    code, output = _predict(*command)
    assert code == 1, output
    good = len(lines) - 4
    assert f"{good} of {good + 3} rows predicted, 3 quarantined" in output

    quarantine = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [row["row"] for row in quarantine] == [good + 1, good + 2, good + 3]
    for row, reason in zip(quarantine, ("no such file", "no word", "quotes"), strict=True):
        assert reason in row["reason"] and row["reason"] in output
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    assert [row["row"] for row in rows] == list(range(1, good + 1))
    assert rows == [json.loads(li) for li in (out / "predictions.jsonl").read_text().splitlines()]
    assert sorted(path.name for path in (out / "masks").iterdir()) == [
        f"{row['row']:06d}.png" for row in rows
    ]
    results = COCO(str(out / "coco.images.json")).loadRes(str(out / "coco.results.json"))
    assert [results.annToMask(found).sum() for found in results.anns.values()] == [
        coco.area(row["mask"]) for row in rows
    ]
    predictor = Predictor.from_checkpoint(finished.folder)
    for row in rows:
        alone = predictor.predict(tmp_path / row["picture"], row["expression"])
        mask = np.asarray(Image.open(out / "masks" / f"{row['row']:06d}.png")) == 255
        np.testing.assert_array_equal(mask, coco.decode(row["mask"]).astype(bool))
        assert iou(mask, alone.mask) > 0.98 or not mask.any()

    written = {p: p.stat().st_mtime_ns for p in (out / "store").rglob("*")}
    code, again = _predict(*command)
    assert code == 1 and "predict pictures.csv" in output and "predict pictures.csv" not in again
    assert {p: p.stat().st_mtime_ns for p in (out / "store").rglob("*")} == written

    (tmp_path / "gone.png").write_bytes(samples[0]["image"])  # it is looked for again
    here = predict_table(
        table,
        open_checkpoint(finished.folder),
        out,
        lambda store: nullcontext(LocalRunner(store, finished.curriculum.resources)),
    )
    assert (here.count.into, here.count.out, here.count.quarantined) == (good + 3, good + 1, 2)
    found = pq.read_table(here.predictions).to_pylist()
    assert found[:good] == rows  # in this process the others are as they were on Ray
    assert (found[good]["row"], found[good]["picture"]) == (good + 1, "gone.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["HERE/a.png", "a car", "--checkpoint", "nowhere"], "'nowhere' is no folder"),
        (["HERE/a.png", "a car", "--checkpoint", "RUN", "--stage", "x"], "got 'x'"),
        (["photo.png", "a car", "--checkpoint", "RUN"], "cannot read 'photo.png': no such file"),
        (["photo.png", "--checkpoint", "RUN"], "or --table CSV"),
        (["--checkpoint", "RUN"], "or --table CSV"),
        (["photo.png", "x", "--table", "t.csv", "--checkpoint", "RUN"], "or --table CSV"),
        (["HERE/a.png", "?", "--checkpoint", "RUN"], "expression '?' has no word"),
        (["HERE/a.csv", "a car", "--checkpoint", "RUN"], "no known picture format"),
        (["--table", "t.csv", "--checkpoint", "RUN"], "table: 't.csv' cannot be read"),
        (["--table", "HERE/a.csv", "--checkpoint", "RUN"], "the columns picture,expression in"),
        (["--table", "HERE/b.csv", "--checkpoint", "RUN"], "has no row"),
        (
            ["HERE/a.png", "a car", "--checkpoint", "RUN", "--out", "HERE/a.csv", "--force"],
            "a file",
        ),
        (["HERE/a.png", "a car", "--checkpoint", "RUN", "--sam-weights", "x"], "has its own"),
    ],
)
def test_the_users_mistakes_end_with_2(
    finished: RunRecord, tmp_path: Path, arguments: list[str], message: str
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("picture,text\na.png,a car\n")
    (tmp_path / "b.csv").write_text("picture,expression\n")
    places = {"HERE": str(tmp_path), "RUN": finished.folder}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    code, output = _predict(*arguments)
    assert code == 2, output
    assert message in output


def test_a_table_without_training_and_pictures_of_another_world(tmp_path: Path) -> None:
    """With the embedded world's CLIP and SAM, only its own pictures are answered unless forced."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (120, 90, 3), np.uint8)).save(tmp_path / "photo.png")
    Image.fromarray(world.scene(1, 0).image).save(tmp_path / "scene.png")
    (tmp_path / "t.csv").write_text("picture,expression\nphoto.png,a car\nscene.png,a car\n")
    model = zero_shot("toybox", "toybox")
    for force, predicted in ((False, [2]), (True, [1, 2])):
        found = predict_table(
            tmp_path / "t.csv",
            model,
            tmp_path / "out",
            lambda store: nullcontext(LocalRunner(store, Resources())),
            force=force,
        )
        rows = pq.read_table(found.predictions).to_pylist()
        assert [row["row"] for row in rows] == predicted
        assert all(row["checkpoint"] == model.digest for row in rows)
        reasons = [row["reason"] for row in found.reasons]
        assert len(reasons) == 2 - len(predicted)
        assert all("is none of the embedded world" in reason for reason in reasons)

"""From a stored checkpoint to masks of any picture, without Ray; and all that can be wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner
from untrained_run import STAGES, TINY, untrained_run

from ppt.config import ConfigError
from ppt.images.drawing import overlay
from ppt.images.pictures import UnreadablePicture
from ppt.jobs.cli import app
from ppt.serving.predict_table import read_table
from ppt.serving.predictor import Predictor, Question, save_mask
from ppt.serving.stored_checkpoint import open_checkpoint
from ppt.store.checksums import seal, unseal
from ppt.toybox import world

TEXTS = ["the red car", "green boat on the left"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("predict") / "runs")


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor.from_checkpoint(run)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """uint8 [64, 96, 3]: no square, so that a turned mask is seen."""
    return np.ascontiguousarray(world.scene(1, 0).image[:64])


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"null", b"3", b"[]", b"{}", b"\xff", b"[" * 100_000),
        b'{"stages": 3}',
        b'{"stages": [{"name": "a"}], "digests": {}}',
        b'{"stages": [{"name": "a"}], "digests": {"checkpoints.a": "0"}, "chosen": 1}',
        seal({"stages": [{"name": "a"}], "digests": {"checkpoints.a": "0"}}).replace(b"0", b"1"),
    ],
)
def test_a_damaged_summary_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^checkpoint: .*summary.json .*: run `ppt report` with"):
        open_checkpoint(tmp_path)


# ---------------------------------------------------------------- predictions


def test_a_run_knows_its_model(run):
    """The chosen stage; a stage that is named goes before it; older summaries have none."""
    path = run / "summary.json"
    summary = json.loads(path.read_text())
    digests = [summary["digests"][f"checkpoints.{name}"] for name in STAGES]
    assert open_checkpoint(run).digest == digests[-1]
    try:
        path.write_text(json.dumps({**summary, "chosen": {"stage": STAGES[1], "by": "truth"}}))
        assert open_checkpoint(run).digest == digests[1]
        assert open_checkpoint(run, STAGES[0]).digest == digests[0]
        assert open_checkpoint(run, "refinement").digest == digests[-1]
    finally:
        path.write_text(json.dumps(summary))


def test_one_text_and_several_are_the_same(predictor, image):
    both = predictor.predict(image, TEXTS)
    assert [p.text for p in both] == TEXTS
    alone = predictor.predict(image, TEXTS[0])
    np.testing.assert_allclose(alone.points, both[0].points, atol=1e-4)
    assert alone.mask.shape == (64, 96) and alone.mask.dtype == bool
    assert alone.points.shape == (len(alone.point_labels), 2) and alone.point_labels.max() == 1
    assert 0 <= alone.score <= 1
    assert not np.allclose(both[0].points, both[1].points, atol=1e-4)  # the text matters


def test_a_picture_is_encoded_once_for_all_its_texts(predictor, image):
    seen = []
    nets = (predictor.clip.clip.visual.conv1, predictor.model.segmenter.sam.image_encoder)
    hooks = [
        net.register_forward_hook(lambda _, args, __: seen.append(len(args[0]))) for net in nets
    ]
    predictor.predict(image, TEXTS)
    for hook in hooks:
        hook.remove()
    assert seen == [1, 1]  # one pass of each net, over one picture


def test_pictures_in_one_pass_as_each_alone(predictor, image):
    """Pictures of other sizes with other numbers of texts do not change each other's masks."""
    tall = np.ascontiguousarray(world.scene(1, 1).image[:, :48])
    questions = [Question(image, TEXTS, "a"), Question(tall, TEXTS[:1]), Question(image, ["dog"])]
    together = predictor.predict_pictures(questions)
    for question, found in zip(questions, together, strict=True):
        alone = predictor.predict(question.image, list(question.texts))
        assert [p.text for p in found] == list(question.texts)
        for one, other in zip(found, alone, strict=True):
            assert one.image is question.image and one.picture == question.name
            np.testing.assert_allclose(one.points, other.points, atol=1e-4)
            assert np.mean(one.mask != other.mask) < 0.01 and one.mask.shape == other.mask.shape


def test_a_path_an_array_and_a_pil_picture_are_the_same(predictor, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    kinds = [image, Image.fromarray(image), tmp_path / "a.png", str(tmp_path / "a.png")]
    found = [predictor.predict(kind, TEXTS[0]) for kind in kinds]
    for one in found[1:]:
        np.testing.assert_array_equal(one.mask, found[0].mask)
        np.testing.assert_array_equal(one.image, image)
    assert [one.picture for one in found] == ["", "", *[str(tmp_path / "a.png")] * 2]


def _exif(picture: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    picture.save(path, exif=exif, quality=95)


def _deep(picture: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path)


WRITERS = {
    "turned.jpg": _exif,
    "alpha.png": lambda p, path: p.convert("RGBA").save(path),
    "cmyk.jpg": lambda p, path: p.convert("CMYK").save(path, quality=95),
    "deep.png": _deep,
    "grey.png": lambda p, path: p.convert("L").save(path),
    "palette.png": lambda p, path: p.convert("P").save(path),
    "two.png": lambda p, path: p.convert("1").save(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_picture(predictor, image, tmp_path, name):
    WRITERS[name](Image.fromarray(image), tmp_path / name)
    upright = (96, 64) if name == "turned.jpg" else (64, 96)
    from_path = predictor.predict(tmp_path / name, TEXTS[0])
    from_pil = predictor.predict(Image.open(tmp_path / name), TEXTS[0])
    for found in (from_path, from_pil):
        assert found.mask.shape == upright
        assert found.image.shape == (*upright, 3)
    np.testing.assert_array_equal(from_path.image, from_pil.image)
    expected = np.rot90(image, -1) if name == "turned.jpg" else image
    if name in ("turned.jpg", "alpha.png", "cmyk.jpg"):
        assert np.abs(from_path.image.astype(int) - expected).mean() < 6


def test_the_lines_of_the_documentation_run(run, image, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
    lines = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(lines) == 3
    shutil.copytree(run.parent, tmp_path / "runs")
    Image.fromarray(image).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(image).save(tmp_path / "scene.png")
    _command(run, "scene.png", *TEXTS)
    for block in lines[:2]:
        exec(block, names := {})
        assert names["prediction"].mask.shape == (64, 96)
    assert (tmp_path / "overlay.png").exists()
    exec(lines[2], names := {})
    assert len(names["results"].anns) == 2


def test_json_is_what_coco_tools_read(predictor, image):
    found = predictor.predict(image, TEXTS[0])
    told = json.loads(json.dumps(found.as_dict()))
    np.testing.assert_array_equal(coco.decode(told["mask"]).astype(bool), found.mask)
    assert told["box"] == coco.toBbox(told["mask"]).tolist()
    assert (told["height"], told["width"], told["expression"]) == (64, 96, TEXTS[0])
    np.testing.assert_allclose(told["points"], found.points * (96, 64), atol=0.01)
    assert told["point_labels"] == found.point_labels.tolist()
    assert told["score"] == found.score


def test_the_overlay_shows_mask_points_and_score(predictor, image):
    drawn = predictor.predict(image, TEXTS[0]).overlay()
    assert drawn.width == 640 and drawn.height > 640 * 64 // 96  # enlarged, caption below
    mask = np.zeros((64, 96), bool)
    mask[10:30, 10:40] = True
    picture = np.full((64, 96, 3), 200, np.uint8)
    drawn = overlay(picture, mask, [0.75, 0.25], [1], "a car", "score 0.50")
    pixels = np.asarray(drawn).astype(int)
    scale = 640 / 96
    inside, outside = pixels[int(20 * scale), int(25 * scale)], pixels[int(50 * scale), 40]
    assert inside[2] > inside[0] + 30 and inside[2] > outside[2]  # tinted blue, the rest is dark
    red, green, blue = np.moveaxis(pixels, -1, 0)
    rows, columns = np.nonzero((green > red + 50) & (green > blue + 50))  # the positive point
    assert len(rows) > 50
    assert abs(rows.mean() - 16 * scale) < 3 and abs(columns.mean() - 72 * scale) < 3
    blank = overlay(picture, mask, [0.75, 0.25], [1], "", "")
    assert (np.asarray(blank) != pixels).any()


def test_a_long_text_on_a_narrow_picture_is_all_there():
    picture = np.full((200, 8, 3), 90, np.uint8)
    drawn = overlay(picture, np.zeros((200, 8), bool), [], [], "the very long sentence " * 9, "x")
    band = np.asarray(drawn.convert("L"))[640:]
    assert band.shape[0] > 8 * 14
    assert (band[:, -3:] == 255).all()  # nothing is cut at the right


def test_the_mask_is_saved_as_0_and_255(tmp_path):
    mask = np.eye(9, 12, dtype=bool)
    save_mask(mask, tmp_path / "m.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")), mask * 255)


@pytest.mark.parametrize("text", ["", "  ", "?!"])
def test_a_text_without_a_word_is_refused(predictor, image, text):
    with pytest.raises(ValueError, match="has no word"):
        predictor.predict(image, ["a car", text])


def test_a_picture_that_is_none_is_refused(predictor, tmp_path):
    with pytest.raises(UnreadablePicture, match=r"gone.jpg.*no such file"):
        predictor.predict(tmp_path / "gone.jpg", "a car")
    with pytest.raises(UnreadablePicture, match="directory"):
        predictor.predict(tmp_path, "a car")


# ---------------------------------------------------------------- files


def _command(run: Path, *arguments: object) -> str:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments), "--checkpoint", str(run)])
    assert result.exit_code == 0, result.output
    return result.output


def _results(out: Path) -> dict[tuple[str, str], str]:
    """(picture, expression) -> the name of the result, each of which has its three files."""
    coco_files = {path.name for path in out.glob("coco*.json")}
    names = [path.stem for path in out.glob("*.json") if path.name not in coco_files]
    files = {f"{name}{part}" for name in names for part in (".png", ".mask.png", ".json")}
    assert {path.name for path in out.iterdir()} == files | coco_files
    told = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    for name, record in told.items():
        mask = np.asarray(Image.open(out / f"{name}.mask.png")) == 255
        np.testing.assert_array_equal(mask, coco.decode(record["mask"]).astype(bool))
    return {(record["picture"], record["expression"]): name for name, record in told.items()}


def test_no_result_overwrites_another(run, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.roll(image, number, 1)).save(tmp_path / folder / "1.png")
    texts = [
        "a car, left",
        "A car (left)",
        "a car" + " that is red" * 9,
        "a car" + " that is red" * 8,
    ]
    asked = {(f"{folder}/1.png", text) for folder in ("a", "b") for text in texts}
    for folder in ("a", "b", "a"):
        told = _command(run, f"{folder}/1.png", *texts, f"{texts[0]} ", "--out", "out")
        assert told.count(": score ") == len(texts)  # each text once, whatever blanks it has
    found = _results(tmp_path / "out")
    assert found.keys() == asked  # what is asked again is written over its own files only
    assert found["a/1.png", texts[0]] == "1-a-car-left"
    assert found["a/1.png", texts[1]] == "1-a-car-left-2"
    assert found["b/1.png", texts[0]] == "1-a-car-left-3"


def test_a_file_that_is_no_result_is_not_overwritten(run, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / "a-car.mask.png").write_text("mine")
    _command(run, tmp_path / "a.png", "car", "--out", tmp_path)
    assert (tmp_path / "a-car.mask.png").read_text() == "mine"
    assert (tmp_path / "a-car-2.mask.png").exists()


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (b"x" * 240 + b".png", "x" * 100 + "-" + "\u5b57" * 33),
        ("\xe9".encode() * 120 + b".png", "\xe9" * 50 + "-" + "\u5b57" * 33),
        (b"caf\xe9.png", "caf_-" + "\u5b57" * 33),
    ],
)
def test_names_that_are_long_or_no_text(run, image, tmp_path, name, written):
    path = tmp_path / os.fsdecode(name)
    Image.fromarray(image).save(path)
    _command(run, path, "\u5b57" * 70, "--out", tmp_path / "out")
    ((picture, _), found), *others = _results(tmp_path / "out").items()
    assert found == written and not others
    assert picture == os.fsencode(path).decode(errors="backslashreplace")


# ---------------------------------------------------------------- tables


def test_no_row_of_a_table_is_lost(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        "note, picture ,expression\n"
        'x,a.png,"the dog\nx,b.png,the cat"\n\n'
        "x, c.png ,the bird\n"
        "x,d.png\n"
        "x,,a cow\n"
        "x,e.png,?!\n"
    )
    rows = read_table(table)
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert (rows[1].path, rows[1].expression, rows[1].fault) == (
        tmp_path / "c.png",
        "the bird",
        None,
    )
    faults = [row.fault for row in rows if row.fault]
    for fault, part in zip(
        faults,
        (
            "line 2 goes on to line 3",
            "line 6 has 2 cells, the header 3: expression is missing",
            "no picture is given",
            "has no word",
        ),
        strict=True,
    ):
        assert part in fault


def test_a_cell_of_a_column_that_is_not_used_may_be_missing(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        "picture,note,expression,more,other\n"
        "a.png,x,the dog\n"
        "b.png,x,the cat,y\n"
        "c.png,x\n"
        "d.png\n"
        "e.png,x,a bird, red,y,z\n"
    )
    rows = read_table(table)
    assert [(row.picture, row.expression) for row in rows[:2]] == [
        ("a.png", "the dog"),
        ("b.png", "the cat"),
    ]
    assert [row.fault for row in rows] == [
        None,
        None,
        "line 4 has 2 cells, the header 5: expression is missing",
        "line 5 has 1 cell, the header 5: expression is missing",
        'line 6 has 6 cells, the header 5: text that holds a comma needs "quotes"',
    ]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_in_place_of_a_table_is_told(tmp_path, image, kind):
    Image.fromarray(image).save(tmp_path / "t.csv", kind)
    with pytest.raises(ConfigError, match=rf"t.csv' is a picture \({kind}\), no CSV"):
        read_table(tmp_path / "t.csv")


def test_a_table_that_is_refused_leaves_no_folder(run, tmp_path):
    (tmp_path / "t.csv").write_text("image,text\na.png,a car\n")
    told = ["predict", "--table", f"{tmp_path}/t.csv", "--out", f"{tmp_path}/out"]
    result = CliRunner().invoke(app, [*told, "--local", "--checkpoint", str(run)])
    assert result.exit_code == 2, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_table_needs_no_ray_with_local(run, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("picture,expression\na.png,the red car\n")
    out = tmp_path / "out"
    told = _command(run, "--table", tmp_path / "t.csv", "--out", out, "--local")
    assert "1 of 1 rows predicted" in told
    row = json.loads((out / "predictions.jsonl").read_text())
    alone = Predictor.from_checkpoint(run).predict(image, "the red car")
    np.testing.assert_array_equal(coco.decode(row["mask"]).astype(bool), alone.mask)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'picture,expression\na.png,"the dog\nb.png,a cat\nc.png,a bird\n',
            "no CSV.*after line 1",
        ),
        (b"picture,expression,expression\na.png,a,b\n", "has the column 'expression' twice"),
        (b"image,text\na.png,a\n", "must name the columns picture,expression .*, got 'image,text'"),
        (b"a.png,a car\nb.png,a dog\n", "must name the columns .*, got 'a.png,a car'"),
        (b"picture;expression\na.png;a\n", "has semicolons between its columns: save it with"),
        (b"picture,expression\n", "has no row"),
        (b"picture,expression\na.png,caf\xe9\n", "is not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=f"t.csv'.*{message}"):
        read_table(tmp_path / "t.csv")


def test_a_table_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="t.csv' cannot be read: .*no regular one"):
        read_table(tmp_path / "t.csv")


# ---------------------------------------------------------------- checkpoints


def test_a_run_its_stage_and_its_folder(run):
    last = open_checkpoint(run)
    assert last.model.point_generator == TINY
    assert last == open_checkpoint(run, "refinement") == open_checkpoint(str(last.folder))
    assert open_checkpoint(run, "refinement.1").digest != last.digest
    assert Predictor.from_checkpoint(run, stage="refinement.2").checkpoint == last


@pytest.mark.parametrize(
    ("run_name", "stage", "message"),
    [
        ("nowhere", None, "is no folder.*the runs quickstart"),
        (".", None, "no generator.safetensors and no manifest.json.*the runs quickstart"),
        ("quickstart", "ris_joint", "has trained semantic_alignment, .*got 'ris_joint'"),
        ("quickstart", "semantic_aligment", "did you mean semantic_alignment"),
        ("store/checkpoints", "ris_joint", "can be chosen in a run's folder"),
    ],
)
def test_a_checkpoint_that_is_none(run, run_name, stage, message):
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(run.parent / run_name, stage)


@pytest.fixture
def copied(run, tmp_path) -> Path:
    """A checkpoint's folder that a test may break."""
    return Path(shutil.copytree(open_checkpoint(run).folder, tmp_path / "checkpoint"))


def _edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    manifest = unseal(path.read_bytes())
    change(manifest)
    path.write_bytes(seal(manifest))


def test_other_encoders_than_in_training_are_refused(copied):
    _edit(copied, lambda m: m["made_from"]["spec"]["encoders"].update(sam="0" * 64))
    with pytest.raises(ConfigError, match="sam: checkpoint .* fingerprint 0000.*--sam-weights"):
        Predictor.from_checkpoint(copied)


def test_weights_are_looked_for_where_the_caller_says(copied, tmp_path):
    name = {"name": "ViT-B-32", "weights": "/old/place.pt"}
    _edit(copied, lambda m: m["model"]["clip"].update(name))
    with pytest.raises(ConfigError, match="cannot be built: .*/old/place.pt"):
        Predictor.from_checkpoint(copied)
    with pytest.raises(ConfigError, match="cannot be built: .*new.pt"):
        Predictor.from_checkpoint(copied, clip_weights=tmp_path / "new.pt")
    with pytest.raises(ConfigError, match="clip: .* those of random have"):
        Predictor.from_checkpoint(copied, clip_weights="random")


def test_a_checkpoint_of_another_version_or_broken(copied):
    (copied / "generator.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=f"cannot be read.*: remove .*{copied} and run"):
        Predictor.from_checkpoint(copied)
    _edit(copied, lambda m: m.pop("model"))
    told = "does not say which model.*another version of ppt: run `ppt train` again .*`ppt export`"
    with pytest.raises(ConfigError, match=told):
        open_checkpoint(copied)
    for content, told in (("[", "is no JSON"), ("", "is empty"), ("[]", "holds no JSON object")):
        (copied / "manifest.json").write_text(content)
        remedy = f"remove the checkpoint's folder {copied} and run"
        with pytest.raises(ConfigError, match=f"manifest.json .*{told}.*: {remedy}"):
            open_checkpoint(copied)


def test_a_checkpoint_whose_model_lacks_a_key_is_of_another_version(copied):
    _edit(copied, lambda m: m["model"]["point_generator"].pop("positive_above"))
    with pytest.raises(ConfigError, match="has not the keys of today's.*another version of ppt"):
        open_checkpoint(copied)


def test_the_limits_of_the_labels_are_those_of_the_training(copied, image):
    _edit(copied, lambda m: m["model"]["point_generator"].update(positive_above=99.0))
    found = Predictor.from_checkpoint(copied).predict(image, TEXTS[0])
    assert (found.point_labels == 1).sum() == 1  # the one that is forced


def test_a_generator_of_another_size_is_named(copied):
    _edit(copied, lambda m: m["model"]["point_generator"].update(num_queries=5))
    told = r"made by another version of ppt: run `ppt train` again .*the model wants \(5, "
    with pytest.raises(ConfigError, match=told):
        Predictor.from_checkpoint(copied)

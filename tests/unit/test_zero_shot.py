"""CLIP and SAM without training: as the baseline measures them, and how they are named."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from common import ROOT
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from typer.testing import CliRunner

from ppt.config import ConfigError
from ppt.downloads.published_files import FILES
from ppt.images.masks import iou
from ppt.images.pictures import read_picture
from ppt.jobs.cli import app
from ppt.models.weights import clip_name, sam_name
from ppt.serving.asked import AskedPicture, split_arguments
from ppt.serving.result_files import coco_results
from ppt.serving.zero_shot import ZeroShotPredictor, zero_shot
from ppt.toybox import world
from ppt.toybox.recognise import is_of_the_world

SCENE = ROOT / "docs" / "scene.png"
TOYBOX = ("--clip", "toybox", "--sam", "toybox")


@pytest.fixture(scope="module")
def predictor() -> ZeroShotPredictor:
    return ZeroShotPredictor.of("toybox", "toybox", device="cpu")


def predict(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


# ---------------------------------------------------------------- masks


def test_objects_are_found_without_training(predictor):
    """The masks of class names in pictures of one object overlap it, most of them well."""
    found = []
    for index in range(12):
        drawn = world.object_centric(3, index)
        found.append(
            iou(
                predictor.predict(drawn.image, drawn.objects[0].class_name).mask,
                drawn.objects[0].mask,
            )
        )
    assert np.median(found) > 0.6


def test_a_prediction_without_training_says_so(predictor):
    found = predictor.predict(SCENE, "the mushroom on the left")
    told = json.loads(json.dumps(found.as_dict()))
    assert told["zero_shot"] == {"clip": "toybox", "sam": "toybox"}
    assert told["checkpoint"] == predictor.digest and told["picture"] == str(SCENE)
    assert "SAM's score" in found.verdict
    assert found.attention.sum() == pytest.approx(1, abs=1e-4)
    blank = predictor.predict(np.full((96, 96, 3), 128, np.uint8), ["a car", "a dog"])
    assert [p.mask.shape for p in blank] == [(96, 96)] * 2


# ---------------------------------------------------------------- CLIP and SAM by name


def test_what_is_not_there_can_be_downloaded_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="`ppt download clip_vit_b_16 sam_vit_b`") as error:
        zero_shot("clip_vit_b_16", "sam_vit_b", tmp_path)
    assert "\n" not in str(error.value)
    FILES["sam_vit_b"].place(tmp_path).parent.mkdir()
    FILES["sam_vit_b"].place(tmp_path).touch()
    with pytest.raises(ConfigError, match="`ppt download clip_vit_b_16`, name"):
        zero_shot("ViT-B-16-quickgelu", "vit_b", tmp_path)


def test_without_anything_the_command_says_how_to_get_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(SCENE, "a.png")
    code, output = predict("a.png", "a car")
    assert code == 2 and output.count("error:") == 1
    assert "`ppt download clip_vit_b_16 sam_vit_b`" in output
    code, output = predict("a.png", "a car", "--clip", "toybox", "--sam", "mobile_sam")
    assert code == 2 and "`ppt download mobile_sam`" in output


def test_weights_by_name_and_size(tmp_path):
    for name in ("clip_vit_l_14", "mobile_sam"):
        FILES[name].place(tmp_path).parent.mkdir(exist_ok=True)
        FILES[name].place(tmp_path).touch()
    found = zero_shot("clip_vit_l_14", "mobile_sam", tmp_path)
    assert (found.clip.name, found.clip.image_size) == ("ViT-L-14-quickgelu", 518)  # 37 patches
    assert found.clip.weights == str(tmp_path / "weights" / "ViT-L-14.pt")
    assert (found.sam.name, found.sam.weights) == (
        "mobile_sam",
        str(tmp_path / "weights" / "mobile_sam.pt"),
    )
    found = zero_shot("ViT-B-16:laion2b_s34b_b88k", "toybox")
    assert (found.clip.name, found.clip.weights) == ("ViT-B-16", "laion2b_s34b_b88k")
    assert found.clip.image_size == 512


def test_a_file_tells_which_net_it_holds(tmp_path):
    with torch.device("meta"):
        clip = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    assert clip_name(clip.state_dict()) == "ViT-B-32" and sam_name(clip.state_dict()) is None
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 2, 2, 1280)}, tmp_path / "h.pth")
    assert zero_shot("toybox", str(tmp_path / "h.pth")).sam.name == "vit_h"
    with pytest.raises(ConfigError, match=r"--clip: .*h.pth does not tell .*ViT-B-16:"):
        zero_shot(str(tmp_path / "h.pth"), "toybox")


@pytest.mark.parametrize(
    ("clip", "sam", "message"),
    [
        ("nothing", "toybox", "--clip: 'nothing' is no file and no known name.*clip_vit_b_16"),
        ("sam_vit_b", "toybox", "--clip: 'sam_vit_b' is no file"),
        ("RN50:openai", "toybox", "--clip: .*its image tower is a ResNet"),
        ("toybox", "vit_x", "--sam: 'vit_x' is no file and no known name.*sam_vit_b"),
        ("toybox", "HERE/a.pth", "--sam: .*a.pth is no SAM"),
        ("toybox", "HERE/b.pth", "--sam: .*b.pth is no checkpoint"),
    ],
)
def test_names_that_are_none(tmp_path, clip, sam, message):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"<html>")
    with pytest.raises(ConfigError, match=message):
        zero_shot(clip, sam.replace("HERE", str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stage", "x"], "give --checkpoint"),
        (["--clip-weights", "x"], "give --checkpoint"),
        (["--checkpoint", "x", "--clip", "toybox"], "not for a checkpoint"),
    ],
)
def test_options_that_do_not_belong_together(options, message):
    code, output = predict(SCENE, "a car", *options)
    assert code == 2 and message in output


# ---------------------------------------------------------------- pictures and texts


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures of two scenes, one of them under three names."""
    for name, index in (("1.png", 0), ("2.png", 1), ("more/1.png", 1), ("more/b c.PNG", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(world.scene(2, index).image).save(tmp_path / name, "PNG")
    (tmp_path / "more" / "notes.txt").write_text("no picture")
    (tmp_path / "car").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


MORE = ["more/1.png", "more/b c.PNG"]


@pytest.mark.parametrize(
    ("arguments", "places", "texts"),
    [
        (["1.png", "a car"], ["1.png"], ["a car"]),
        (["1.png", "2.png", "a car", "a dog"], ["1.png", "2.png"], ["a car", "a dog"]),
        (["more", "1.png", "x"], ["more/1.png", "more/b c.PNG", "1.png"], ["x"]),
        (["*.png", "1.png", "what?"], ["1.png", "2.png"], ["what?"]),
        (["**/1.png", "a"], ["1.png", "more/1.png"], ["a"]),
        (["http://h/a.png", "https://h/b", "a"], ["http://h/a.png", "https://h/b"], ["a"]),
        (["1.png", "car"], ["1.png"], ["car"]),  # the last argument is a text
        (["1.png", "the file 2.png"], ["1.png"], ["the file 2.png"]),
        (["1.png", "./1.png", "more/1.png", "more", "a car"], ["1.png", *MORE], ["a car"]),
        (["more/../2.png", "*.png", "a car"], ["more/../2.png", "1.png"], ["a car"]),
    ],
)
def test_pictures_come_before_texts(pictures, arguments, places, texts):
    found, said = split_arguments(arguments)
    assert [picture.place for picture in found] == places and said == texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1.png"], "give pictures and a text"),
        (["1.png", "2.png"], "names a picture: give pictures before texts"),
        (["1.png", "a car", "2.png"], "names a picture: give pictures before texts"),
        (["1.png", "gone.png", "a car"], "cannot read 'gone.png': no such file"),
        (["gone.png", "a car"], "cannot read 'gone.png': no such file"),
        (["x*.png", "a car"], "no file matches 'x\\*.png'"),
        (["car", "a car"], "no picture in the folder 'car'$"),
    ],
)
def test_pictures_that_are_not_there(pictures, arguments, message):
    with pytest.raises(ConfigError, match=message):
        split_arguments(arguments)


def test_the_pattern_that_is_told_of_a_folder_finds_the_pictures_below_it(pictures):
    below = Path("my trips [1]", "may", "a.png")
    below.parent.mkdir(parents=True)
    shutil.copyfile("1.png", below)
    with pytest.raises(ConfigError, match="no picture in the folder 'my trips.*: give ") as error:
        split_arguments(["my trips [1]", "a car"])
    (pattern,) = shlex.split(str(error.value).partition(": give ")[2])
    assert [picture.place for picture in split_arguments([pattern, "a car"])[0]] == [str(below)]


def test_names_of_pictures_on_the_web():
    for url, name in (
        ("http://h/a/b%20c.jpg?x=1.png", "b c.jpg"),
        ("https://h/", "picture"),
        ("HTTP://h/%2e%2e", ".."),
    ):
        assert AskedPicture(url).file_name == name


def test_several_pictures_of_one_name_and_several_texts(pictures):
    code, output = predict("**/1.png", "more", "a car", "A car!", *TOYBOX)
    assert code == 0, output
    out = pictures / "predictions"
    told = {path: json.loads(path.read_text()) for path in out.glob("*-car*.json")}
    asked = {(row["picture"], row["expression"]) for row in told.values()}
    places = ("1.png", "more/1.png", "more/b c.PNG")
    assert asked == {(place, text) for place in places for text in ("a car", "A car!")}
    assert len(told) == 6
    for path, row in told.items():
        mask = np.asarray(Image.open(path.with_name(f"{path.stem}.mask.png"))) == 255
        np.testing.assert_array_equal(mask, coco.decode(row["mask"]).astype(bool))


def test_pictures_that_cannot_be_used_are_left_out(pictures):
    (pictures / "more" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    code, output = predict("1.png", "more", "http://127.0.0.1:1/x.png", "a car", *TOYBOX)
    assert code == 1
    assert "left out: 'more/broken.jpg': picture has no known picture format" in output
    assert output.endswith("2 of 5 pictures were left out")
    assert "left out: http://127.0.0.1:1/x.png: the server cannot be reached" in output
    assert len(list((pictures / "predictions").glob("*car*.mask.png"))) == 3


def test_nothing_predicted_is_an_error_and_its_advice_is_given_once(pictures):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((120, 160, 3), np.uint8)).save(pictures / name)
    code, output = predict("a.png", "b.png", "a car", *TOYBOX)
    assert code == 2 and output.endswith("error: all 2 pictures were left out")
    assert output.count("is none of the embedded world") == 2
    assert output.count("give others by --clip and --sam") == 1


def test_a_sentence_without_quotes_is_refused_with_the_right_command(pictures):
    code, output = predict("1.png", "more/b c.PNG", "the", "red", "car", *TOYBOX)
    assert code == 2 and not (pictures / "predictions").exists()
    assert "error: text: 3 texts of one word each: a sentence is one text in quotes" in output
    assert "`ppt predict 1.png 'more/b c.PNG' 'the red car'`" in output
    assert "as in 'a dog' 'a cat'" in output
    for texts in (["car"], ["boat", "boat"], ["the red car", "boat"], ["a dog", "a cat"]):
        code, output = predict("1.png", *texts, *TOYBOX)
        assert code == 0 and output.count(": predictions/1-") == len(set(texts)), output


def test_words_that_are_not_known_are_told(pictures):
    _, output = predict("1.png", "xyzzy", "a red frobnicator and a car", "a red car", *TOYBOX)
    assert output.count("note:") == 2
    told = "'xyzzy': the model does not know, or has no room for, 'xyzzy': the mask is for no word"
    assert told + ", and its score is 0" in output
    told = (
        "'a red frobnicator and a car': the model does not know, or has no room for, 'frobnicator"
    )
    assert told + "': the mask is for the other words" in output
    told = [json.loads(path.read_text()) for path in (pictures / "predictions").glob("1-*.json")]
    assert {row["expression"]: row["unread"] for row in told} == {
        "xyzzy": ["xyzzy"],
        "a red frobnicator and a car": ["frobnicator"],
        "a red car": [],
    }
    scores = {row["expression"]: row["score"] for row in told}
    assert scores.pop("xyzzy") == 0 and min(scores.values()) > 0


def test_words_that_are_not_known_are_told_in_a_line_for_a_table(pictures):
    texts = ["a red car", *(f"a car near word{i} word{i % 4}" for i in range(12)), "?!"]
    (pictures / "t.csv").write_text("picture,expression\n" + "".join(f"1.png,{t}\n" for t in texts))
    code, output = predict("--table", "t.csv", "--local", *TOYBOX)
    assert code == 1 and output.count("note:") == 1, output
    assert "12 of 13 predicted rows have words that the model does not know" in output
    assert "room for ('word0', 'word1', 'word2', 'word3', 'word4', ...): their masks" in output
    lines = (pictures / "predictions" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["unread"] for line in lines] == [
        [],
        *([f"word{i}", f"word{i % 4}"] for i in range(12)),
    ]
    (pictures / "t.csv").write_text("picture,expression\n1.png,a red car\n")
    code, output = predict("--table", "t.csv", "--local", *TOYBOX)
    assert code == 0 and "note:" not in output


def test_a_text_that_begins_with_a_hyphen(pictures):
    for text in ("-left bird", "-left", "--left bird"):
        code, output = predict("1.png", text, *TOYBOX)
        told = re.sub(r"[^\w' -]", "", output)  # without the frame around it
        hint = f"a text that begins with a hyphen comes last as in -- {shlex.quote(text)}"
        assert code == 2 and hint in " ".join(told.split())
        code, output = predict(*TOYBOX, "1.png", "--", text)
        assert code == 0 and f"'{text}': " in output
    assert "hyphen" not in predict("1.png", "a car", "--outt", "x")[1]


@pytest.mark.parametrize("out", ["/proc/x", "link", "file", "file/x"])
def test_a_folder_that_cannot_be_made_is_told_in_a_line(pictures, out):
    (pictures / "link").symlink_to("/nowhere/x")
    (pictures / "file").touch()
    code, output = predict("1.png", "a car", *TOYBOX, "--out", out)
    assert code == 2
    assert output.startswith(f"error: --out: '{out}' cannot be written to (")
    assert "store" not in output


# ---------------------------------------------------------------- COCO's results


def test_cocos_tools_read_the_results(pictures):
    assert predict("1.png", "2.png", "a car", "the boat", *TOYBOX)[0] == 0
    out = pictures / "predictions"
    truth = COCO(str(out / "coco.images.json"))
    results = truth.loadRes(str(out / "coco.results.json"))
    assert {image["file_name"] for image in truth.loadImgs(truth.getImgIds())} == {"1.png", "2.png"}
    rows = {}
    for path in out.glob("?-*.json"):
        row = json.loads(path.read_text())
        rows[row["picture"], row["expression"]] = row
    assert len(results.anns) == len(rows) == 4
    for annotation in results.anns.values():
        picture = truth.loadImgs(annotation["image_id"])[0]["file_name"]
        category = truth.loadCats(annotation["category_id"])[0]["name"]
        row = rows[picture, category]
        np.testing.assert_array_equal(results.annToMask(annotation), coco.decode(row["mask"]))
        assert annotation["score"] == row["score"] and annotation["sentence"] == category
    assert predict("1.png", "2.png", "a car", "the boat", *TOYBOX)[0] == 0  # the same once more
    assert len(list(out.glob("coco*"))) == 2
    assert predict("1.png", "a car", *TOYBOX)[0] == 0
    assert {path.name for path in out.glob("coco-2*")} == {
        "coco-2.results.json",
        "coco-2.images.json",
    }
    assert json.loads((out / "coco.images.json").read_text())["categories"][1]["name"] == "the boat"


def test_pictures_of_coco_keep_their_numbers():
    names = ["x.jpg", "a/COCO_train2014_000000000001.jpg", "b/000000000001.jpg", "000000000002.png"]
    rows = [
        {
            "picture": n,
            "expression": "a",
            "mask": {},
            "box": [],
            "score": 1,
            "height": 1,
            "width": 1,
        }
        for n in names
    ]
    _, about = coco_results(rows)
    found = {image["file_name"]: image["id"] for image in about["images"]}
    assert found == {names[0]: 3, names[1]: 1, names[2]: 4, names[3]: 2}


# ---------------------------------------------------------------- the embedded world's model


def test_the_worlds_pictures_are_known():
    for index in range(40):
        image = world.scene(11, index).image
        assert is_of_the_world(image) and is_of_the_world(image[:64])
        assert is_of_the_world(world.object_centric(11, index).image)
    assert is_of_the_world(read_picture(SCENE))


def test_other_pictures_are_foreign():
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((96, 96)))
    scene = world.scene(11, 0).image
    for image in (
        smooth,
        rng.integers(0, 256, (96, 96, 3), np.uint8),
        np.full((96, 96, 3), 128, np.uint8),
        np.asarray(Image.fromarray(scene).resize((192, 192), Image.Resampling.NEAREST)),
    ):
        assert not is_of_the_world(image)


def test_the_worlds_model_refuses_a_photograph_unless_forced(pictures):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8))
    photo.save("photo.png")
    code, output = predict("photo.png", "xyzzy", *TOYBOX)
    assert code == 2 and "error: 'photo.png': the picture is none of the embedded world" in output
    assert "give others by --clip and --sam" in output and "--checkpoint" not in output
    assert not (pictures / "predictions").exists()
    assert predict("photo.png", "xyzzy", *TOYBOX, "--force")[0] == 0
    assert (pictures / "predictions" / "photo-xyzzy.png").exists()

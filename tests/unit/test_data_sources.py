"""The data sets: real photographs in the REFER layout and in folders, the toybox, broken ones."""

import io
import json
import os
import pickle
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppt.data.mini_imagenet import MiniImageNetData
from ppt.data.object_centric import ImageFolderData
from ppt.data.refer import ReferData
from ppt.data.toybox import ToyboxObjects, ToyboxScenes
from ppt.images.pictures import UnreadablePicture, check_picture
from ppt.toybox import expressions

SHARED = Path(__file__).parents[3] / "shared" / "data"
MINIREF = SHARED / "miniref"


def refer(root=MINIREF, **changes):
    return ReferData(format="refer", root=root, **changes).open()


@pytest.fixture
def broken_world(tmp_path):
    """A REFER folder of four pictures with one defect of each kind."""
    return write_refer(tmp_path)


def jpeg(width=40, height=30) -> bytes:
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 20.0, 5.0, 20.0]


def write_refer(root: Path, polygons=None) -> Path:
    """Pictures 1: good, 2: missing, 3: truncated, 4: one pixel; four refs of picture 1."""
    folder = root / "images" / "train2014"
    folder.mkdir(parents=True)
    (folder / "p1.jpg").write_bytes(jpeg())
    (folder / "p3.jpg").write_bytes(jpeg()[:200])
    (folder / "p4.jpg").write_bytes(jpeg(1, 1))
    texts = {1: ["left dog", "   "], 2: ["the cat"], 3: ["bird"], 4: ["fish"]}
    refs = [ref(i, 1, 10 + i, t) for i, t in texts.items()]
    refs += [ref(5, 2, 11, ["dog"]), ref(6, 3, 11, ["dog", "hot dog"]), ref(7, 4, 11, ["dog"])]
    refs.append(ref(8, 1, 12, ["a val dog"], "val"))
    annotations = [
        {"id": 11, "segmentation": [SQUARE, [10, 10, 25, 10, 25, 25, 10, 25]]},
        {"id": 12, "segmentation": [SQUARE]},
        {"id": 13, "segmentation": polygons or [SQUARE, [1, 1, 5, 5]]},
    ]  # 14 is missing
    images = [{"id": i, "file_name": f"p{i}.jpg", "width": 40, "height": 30} for i in (1, 2, 3, 4)]
    data = root / "refcoco"
    data.mkdir()
    (data / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (data / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": []})
    )
    return root


def ref(ref_id, image_id, ann_id, texts, split="train"):
    sentences = [{"sent_id": 10 * ref_id + i, "sent": t, "raw": t} for i, t in enumerate(texts)]
    name = f"p{image_id}_{ann_id}.jpg"
    base = {"ref_id": ref_id, "image_id": image_id, "ann_id": ann_id, "category_id": 1}
    return {**base, "file_name": name, "split": split, "sentences": sentences}


# ---------------------------------------------------------------- miniref


def test_miniref_is_all_there():
    source = refer(split=["train", "val", "testA", "testB"])
    keys = source.keys()
    assert len(keys) == len(set(keys)) == 22
    pictures = {key: source.read(key) for key in keys}
    assert sum(len(p.expressions) for p in pictures.values()) == 76
    assert sum(source.num_expressions(key) for key in keys) == 76
    ids = [e.expression_id for p in pictures.values() for e in p.expressions]
    assert len(set(ids)) == 76
    for key in keys:
        masks, rejected = source.read_ground_truth(key)
        assert not rejected
        height, width = check_picture(pictures[key].image).shape[:2]
        assert all(m.size == (height, width) and m.mask.any() for m in masks)
        wanted = {e.expression_id for e in pictures[key].expressions}
        assert {m.expression_id for m in masks} == wanted


@pytest.mark.parametrize(
    ("split", "expressions"), [("train", 41), ("val", 12), ("testA", 13), ("testB", 10)]
)
def test_splits_as_in_refcoco(split, expressions):
    source = refer(split=split)
    assert sum(source.num_expressions(key) for key in source.keys()) == expressions
    assert source.fingerprint != refer(split=["train", "testB"]).fingerprint


def test_a_moved_copy_has_the_same_fingerprint_and_any_of_the_usual_folders_will_do(tmp_path):
    shutil.copytree(MINIREF, tmp_path / "data")
    source = refer(tmp_path / "data")
    assert source.fingerprint == refer().fingerprint
    (tmp_path / "mscoco").mkdir()
    shutil.move(tmp_path / "data" / "images" / "train2014", tmp_path / "mscoco" / "train2014")
    shutil.rmtree(tmp_path / "data" / "images")
    moved = refer(tmp_path / "data")
    assert moved.fingerprint == refer().fingerprint
    assert moved.read(moved.keys()[0]).image


# ---------------------------------------------------------------- what training may not see


def test_noise_in_place_of_every_mask_changes_no_sample(tmp_path):
    clean = refer()
    shutil.copytree(MINIREF, tmp_path / "noise")
    path = tmp_path / "noise" / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    rng = np.random.default_rng(0)
    for annotation in instances["annotations"]:
        annotation["segmentation"] = [rng.uniform(0, 300, 12).tolist()]
        annotation["bbox"] = rng.uniform(0, 300, 4).tolist()
        annotation["area"] = 1.0
    path.write_text(json.dumps(instances))
    noisy = refer(tmp_path / "noise")
    assert noisy.fingerprint == clean.fingerprint
    assert noisy.ground_truth_fingerprint != clean.ground_truth_fingerprint
    assert [noisy.read(k) for k in noisy.keys()] == [clean.read(k) for k in clean.keys()]


def test_samples_need_no_annotations_at_all(tmp_path):
    shutil.copytree(MINIREF, tmp_path / "bare")
    path = tmp_path / "bare" / "refcoco" / "instances.json"
    path.write_text(json.dumps({"images": json.loads(path.read_text())["images"]}))
    bare = refer(tmp_path / "bare")
    assert bare.fingerprint == refer().fingerprint
    assert bare.read(bare.keys()[0]) == refer().read(bare.keys()[0])
    masks, rejected = bare.read_ground_truth(bare.keys()[0])
    assert not masks and "does not list it" in rejected[0].reason


def test_reading_samples_never_opens_annotations(broken_world):
    source = refer(broken_world)
    assert source.read("p1.jpg").expressions and source.fingerprint
    assert "_annotations" not in vars(source)


# ---------------------------------------------------------------- broken things


def test_every_broken_picture_says_what_is_wrong(broken_world):
    source = refer(broken_world)
    assert source.keys() == ["p1.jpg", "p2.jpg", "p3.jpg", "p4.jpg"]
    assert [source.num_expressions(key) for key in source.keys()] == [5, 1, 2, 1]
    for key, reason in {
        "p2.jpg": "p2.jpg is missing",
        "p3.jpg": "(?i)truncated",
        "p4.jpg": "picture is 1x1, needs at least 8x8",
    }.items():
        with pytest.raises(UnreadablePicture, match=reason):
            source.read(key)
        masks, rejected = source.read_ground_truth(key)
        assert not masks and len(rejected) == source.num_expressions(key)
        assert all(re.search(reason, r.reason) for r in rejected)


def test_an_expression_of_spaces_is_rejected_and_the_others_stay(broken_world):
    picture = refer(broken_world).read("p1.jpg")
    assert [e.text for e in picture.expressions] == ["left dog", "the cat", "bird", "fish"]
    (rejected,) = picture.rejected
    assert rejected.expression_id == "1-11" and "no word" in rejected.reason


def test_one_broken_polygon_costs_one_expression(broken_world):
    masks, rejected = refer(broken_world).read_ground_truth("p1.jpg")
    assert [m.expression_id for m in masks] == ["1-10", "2-20"]
    reasons = {r.expression_id: r.reason for r in rejected}
    assert reasons["3-30"] == "annotation 13: polygon 1 has 2 points, needs at least 3"
    assert "annotation 14" in reasons["4-40"]
    assert masks[0].mask.sum() > masks[1].mask.sum()  # the union of two overlapping polygons


def test_ground_truth_follows_its_annotations(tmp_path):
    one = refer(write_refer(tmp_path / "one"))
    two = refer(write_refer(tmp_path / "two", polygons=[SQUARE]))
    assert one.fingerprint == two.fingerprint
    assert one.ground_truth_fingerprint != two.ground_truth_fingerprint
    assert len(two.read_ground_truth("p1.jpg")[0]) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "refcocog"}, r"dataset 'refcocog' is not in .*there: \['refcoco'\]"),
        ({"split_by": "google"}, r"split_by 'google'.*there: \['refs\(unc\).p'\]"),
        ({"split": "testC"}, r"split \['testC'\] is not in .*there: \['train', 'val'\]"),
    ],
)
def test_a_wrong_field_is_named(broken_world, changes, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        refer(broken_world, **changes)


def test_missing_folders_are_named(broken_world, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        refer(tmp_path / "nowhere")
    shutil.rmtree(broken_world / "images")
    with pytest.raises(FileNotFoundError, match="images/train2014"):
        refer(broken_world)


class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def test_a_pickle_that_would_run_code_is_refused(broken_world, tmp_path):
    evil = pickle.dumps([Evil(tmp_path / "code-ran")])
    (broken_world / "refcoco" / "refs(unc).p").write_bytes(evil)
    with pytest.raises(ValueError, match=r"refuses to load \w+\.mkdir"):
        refer(broken_world)
    assert not (tmp_path / "code-ran").exists()


# ---------------------------------------------------------------- object-centric


def imagenet(root, **changes):
    return ImageFolderData(format="imagenet", root=root, **changes).open()


def test_imagenet_layout():
    source = imagenet(SHARED / "imagenet-sample")
    assert len(source.keys()) == 250
    picture = source.read("n01440764/n01440764_0.JPEG")
    assert picture.class_name == "tench" and picture.expressions == []
    assert check_picture(picture.image).ndim == 3
    assert source.read_ground_truth("n01440764/n01440764_0.JPEG") == ([], [])
    assert source.num_expressions("n01440764/n01440764_0.JPEG") == 1


def test_a_seeded_choice_of_pictures():
    chosen = imagenet(SHARED / "imagenet-sample", max_pictures=20, seed=3)
    again = imagenet(SHARED / "imagenet-sample", max_pictures=20, seed=3)
    other = imagenet(SHARED / "imagenet-sample", max_pictures=20, seed=4)
    assert len(chosen.keys()) == 20 and chosen.keys() == again.keys() == sorted(chosen.keys())
    assert chosen.keys() != other.keys() and chosen.fingerprint != other.fingerprint
    assert chosen.fingerprint == again.fingerprint


def test_one_folder_for_each_class(tmp_path):
    for name, data in (("red_panda/a.jpg", jpeg()), ("cup/b.png", jpeg()), ("cup/notes.txt", b"")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "cup" / "tiny.jpg").write_bytes(jpeg(4, 4))
    source = imagenet(tmp_path)
    assert source.keys() == ["cup/b.png", "cup/tiny.jpg", "red_panda/a.jpg"]
    assert source.read("red_panda/a.jpg").class_name == "red panda"
    with pytest.raises(UnreadablePicture, match="4x4"):
        source.read("cup/tiny.jpg")


def test_what_is_hidden_is_left_alone(tmp_path):
    for name in ("dog/a.jpg", "dog/._a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "train/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg())
    (tmp_path / "train" / ".thumbnails").mkdir()  # does not make "train" the folder of classes
    assert imagenet(tmp_path).keys() == ["dog/a.jpg", "train/b.jpg"]


def test_names_with_accents_and_names_that_are_no_text(tmp_path):
    for folder in (os.fsencode(unicodedata.normalize("NFD", "caf\xe9_cup")), b"th\xe9"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + folder)
        (tmp_path / os.fsdecode(folder) / "a.jpg").write_bytes(jpeg())
    source = imagenet(tmp_path)
    cup, tea = source.keys()
    assert source.read(cup).class_name == "caf\xe9 cup"
    assert tea == "th\\xe9/a.jpg" and source.num_expressions(tea) == 1 and source.fingerprint
    with pytest.raises(UnreadablePicture, match=r"path of picture th\\xe9/a.jpg is not UTF-8: ren"):
        source.read(tea)


def test_folders_without_pictures_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        imagenet(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no picture in a folder"):
        imagenet(tmp_path)


def test_fewer_pictures_than_asked_for_are_told():
    assert imagenet(SHARED / "imagenet-sample", max_pictures=20).note is None
    note = imagenet(SHARED / "imagenet-sample", max_pictures=2836).note
    assert note == "max_pictures is 2836, but only 250 are there"


@pytest.mark.parametrize("inner", ["train", "ILSVRC/Data/CLS-LOC/train"])
def test_wnids_need_their_names(tmp_path, inner):
    folder = tmp_path / inner / "n02123045"
    folder.mkdir(parents=True)
    (folder / "a.JPEG").write_bytes(jpeg())
    with pytest.raises(ValueError, match="n02123045.*put ImageNet's LOC_synset_mapping.txt at"):
        imagenet(tmp_path)
    (tmp_path / "LOC_synset_mapping.txt").write_text("n02123045 tabby, tabby cat\n")
    source = imagenet(tmp_path)
    assert source.keys() == ["n02123045/a.JPEG"]
    assert source.read("n02123045/a.JPEG").class_name == "tabby"
    mapping = "\ufeffn02123045 tabby, tabby cat\n"  # as editors on Windows write it
    (tmp_path / "LOC_synset_mapping.txt").write_text(mapping, encoding="utf-8")
    assert imagenet(tmp_path).read("n02123045/a.JPEG").class_name == "tabby"
    (tmp_path / "LOC_synset_mapping.txt").write_bytes(b"n02123045 caf\xe9\n")
    with pytest.raises(ValueError, match="LOC_synset_mapping.txt' is not UTF-8"):
        imagenet(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(jpeg())
    assert imagenet(tmp_path).keys() == ["bus/a.jpg", "train/a.jpg"]


# ---------------------------------------------------------------- mini-ImageNet

MAPPING = """n01532829 house finch, linnet, Carpodacus mexicanus
n02091244 Ibizan hound, Ibizan Podenco
n01930112 nematode, nematode worm, roundworm
"""


@pytest.fixture
def mini(tmp_path):
    """A class in each split, three pictures each; one of val's is not there."""
    (tmp_path / "images").mkdir()
    wnids = {"train": "n01532829", "val": "n02091244", "test": "n01930112"}
    for split, wnid in wnids.items():
        names = [f"{wnid}0000000{i}.jpg" for i in range(3)]
        (tmp_path / f"{split}.csv").write_text(
            "filename,label\n" + "".join(f"{name},{wnid}\n" for name in names)
        )
        for name in names:
            (tmp_path / "images" / name).write_bytes(jpeg())
    (tmp_path / "images" / "n0209124400000002.jpg").unlink()
    (tmp_path / "LOC_synset_mapping.txt").write_text(MAPPING)
    return tmp_path


def mini_imagenet(root, **changes):
    return MiniImageNetData(format="mini_imagenet", root=root, **changes).open()


def test_mini_imagenet(mini):
    source = mini_imagenet(mini)
    assert len(source.keys()) == 9 and source.keys() == sorted(source.keys())
    picture = source.read("n0153282900000001.jpg")
    assert picture.class_name == "house finch" and picture.expressions == []
    assert check_picture(picture.image).shape == (30, 40, 3)
    with pytest.raises(UnreadablePicture, match="n0209124400000002.jpg is missing from .*images"):
        source.read("n0209124400000002.jpg")
    classes = {source.read(key).class_name for key in mini_imagenet(mini, split="test").keys()}
    assert classes == {"nematode"}
    assert len(mini_imagenet(mini, split=["train", "val"]).keys()) == 6


def test_a_seeded_choice_of_mini_imagenet(mini):
    chosen = mini_imagenet(mini, max_pictures=4, seed=1)
    assert len(chosen.keys()) == 4 and chosen.note is None
    assert chosen.keys() == mini_imagenet(mini, max_pictures=4, seed=1).keys()
    assert chosen.fingerprint != mini_imagenet(mini).fingerprint
    others = [mini_imagenet(mini, max_pictures=4, seed=seed).keys() for seed in range(2, 6)]
    assert any(keys != chosen.keys() for keys in others)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("LOC_synset_mapping.txt", None, "without a name: 3, 'n01532829' is one; put Im"),
        ("LOC_synset_mapping.txt", MAPPING[MAPPING.index("n02") :], "a name: 1, 'n01532829'"),
        ("val.csv", None, r"split 'val': no .*val.csv' \(there: \['test', 'train'\]\)"),
        ("val.csv", "file,label\na.jpg,n02091244\n", r"val.csv.*no column \['filename'\]"),
        ("val.csv", "filename,label\na.jpg,\n", "val.csv' has a row without filename or label"),
        ("val.csv", "filename,label\na.jpg\n", "val.csv' has a row without filename or label"),
        ("val.csv", 'filename,label\n"a.jpg,x\nb.jpg",x\n', "without .*: line 2 goes on to line 3"),
        (
            "val.csv",
            "filename,label\na.jpg,x\na.jpg,y\n",
            "val.csv' gives 'a.jpg' the labels x and y",
        ),
    ],
)
def test_what_mini_imagenet_lacks_is_named(mini, name, content, message):
    (mini / name).unlink()
    if content is not None:
        (mini / name).write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        mini_imagenet(mini)


def test_mini_imagenet_needs_its_pictures(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no folder `images`: set `root`"):
        mini_imagenet(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "train.csv").write_text("filename,label\n")
    with pytest.raises(ValueError, match=r"split \['train'\] of .* lists no picture"):
        mini_imagenet(tmp_path, split="train")


# ---------------------------------------------------------------- toybox


def scenes(**changes):
    values = {"num_pictures": 6, "seed": 3, **changes}
    return ToyboxScenes(format="toybox_scenes", **values).open()


def test_toybox_scenes():
    source = scenes()
    assert len(source.keys()) == len(set(source.keys())) == 6
    for key in source.keys():
        picture = source.read(key)
        masks, rejected = source.read_ground_truth(key)
        assert not rejected and not picture.rejected and picture.class_name is None
        assert len(picture.expressions) == len(masks) == source.num_expressions(key)
        for expression, truth in zip(picture.expressions, masks, strict=True):
            assert (expression.expression_id, expression.kind) == (truth.expression_id, truth.kind)
            assert truth.size == check_picture(picture.image).shape[:2]
    assert scenes().read(source.keys()[2]) == source.read(source.keys()[2])
    assert scenes().fingerprint == source.fingerprint != scenes(seed=4).fingerprint
    assert scenes(num_pictures=7).fingerprint != source.fingerprint


def test_another_choice_of_expressions_is_seen_though_the_first_picture_stays(monkeypatch):
    asked = {"num_pictures": 30, "seed": 1}
    before = scenes(**asked)
    first = before.read(before.keys()[0])
    seen = before.fingerprint
    monkeypatch.setattr(expressions, "KIND_SHARES", (0.05, 0.20, 0.40, 0.35))
    after = scenes(**asked)
    assert after.read(after.keys()[0]) == first
    assert after.fingerprint != seen


def test_toybox_objects():
    source = ToyboxObjects(format="toybox_objects", num_pictures=3, seed=1).open()
    for key in source.keys():
        picture = source.read(key)
        ((truth,), rejected) = source.read_ground_truth(key)
        assert picture.class_name and not picture.expressions and not rejected
        assert truth.expression_id == key and truth.mask.any()


def test_toybox_fields_that_contradict():
    with pytest.raises(ValueError, match="max_objects must be >= min_objects, got 3 and 5"):
        scenes(min_objects=5, max_objects=3)

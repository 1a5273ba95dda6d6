"""REFER data sets as published: every split, Python 2's pickles, what is here and what is not."""

import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from ppt.data.expected import EXPECTED_REFS, SplitCount
from ppt.data.refer import ReferData, split_counts
from ppt.images.pictures import UnreadablePicture

PUBLISHED = [  # dataset, split_by, refs by split
    ("refcoco", "unc", {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810}),
    ("refcoco+", "unc", {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798}),
    ("refcocog", "umd", {"train": 42226, "val": 2573, "test": 5023}),
    ("refcocog", "google", {"train": 44822, "val": 5000}),
]
SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 20.0, 5.0, 20.0]


def ref(number: int, split: str, image_id: int = 1) -> dict:
    sentence = {"sent_id": number, "sent": "caf\xe9 table", "raw": "x", "tokens": ["x"]}
    return {
        "ref_id": number,
        "ann_id": 7,
        "category_id": 1,
        "image_id": image_id,
        "file_name": "COCO_train2014_000000000001_7.jpg",
        "split": split,
        "sent_ids": [number],
        "sentences": [sentence],
    }


def write(root: Path, refs: bytes | list, dataset: str = "refcoco", split_by: str = "unc") -> Path:
    """Pictures p1.jpg, there, and p2.jpg, listed but missing; annotation 7."""
    folder = root / dataset
    folder.mkdir(parents=True)
    images = [{"id": i, "file_name": f"p{i}.jpg", "height": 30, "width": 40} for i in (1, 2)]
    annotations = [{"id": 7, "image_id": 1, "segmentation": [SQUARE]}]
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": []})
    )
    data = refs if isinstance(refs, bytes) else pickle.dumps(refs, protocol=2)
    (folder / f"refs({split_by}).p").write_bytes(data)
    pictures = root / "images" / "mscoco" / "images" / "train2014"
    pictures.mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(pictures / "p1.jpg")
    return root


def refer(root: Path, **changes):
    return ReferData(format="refer", root=root, **changes).open()


# ---------------------------------------------------------------- Python 2's pickles


def python2(value, protocol: int) -> bytes:
    """What Python 2 wrote: its `str` is bytes, an opcode that Python 3 never writes."""

    def dump(v) -> bytes:
        match v:
            case str() if protocol == 2:
                raw = v.encode("latin1")
                return b"T" + len(raw).to_bytes(4, "little") + raw
            case str():
                return b"S" + repr(v.encode("latin1"))[1:].encode() + b"\n"
            case int():
                return b"J" + v.to_bytes(4, "little") if protocol == 2 else b"I%d\n" % v
            case list() if protocol == 2:
                return b"](" + b"".join(map(dump, v)) + b"e"
            case list():
                return b"(l" + b"".join(dump(item) + b"a" for item in v)
            case dict() if protocol == 2:
                return b"}(" + b"".join(dump(k) + dump(item) for k, item in v.items()) + b"u"
            case dict():
                return b"(d" + b"".join(dump(k) + dump(item) + b"s" for k, item in v.items())
        raise TypeError(v)

    return (b"\x80\x02" if protocol == 2 else b"") + dump(value) + b"."


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickles_of_python_2(tmp_path: Path, protocol: int) -> None:
    data = python2([ref(1, "train"), ref(2, "val")], protocol)
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(data)  # as Python 3 would read it
    source = refer(write(tmp_path, data), split=["train", "val"])
    expressions = source.read("p1.jpg").expressions
    assert [(e.expression_id, e.text) for e in expressions] == [
        ("1-1", "caf\xe9 table"),
        ("2-2", "caf\xe9 table"),
    ]
    masks, rejected = source.read_ground_truth("p1.jpg")
    assert len(masks) == 2 and masks[0].mask.sum() == 225 and not rejected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"refs": []}), "is no list of refs: it holds a dict"),
        (pickle.dumps([{"ref_id": 1}]), r"ref 0 lacks \['ann_id', 'image_id', 'sent"),
        (pickle.dumps([ref(1, "train") | {"sentences": [{}]}]), "ref 0 has a sentence without"),
        (b"\x89PNG not a pickle", "is no list of refs"),
        (python2([ref(1, "train")], 2)[:-40], "is no list of refs"),
        (b"", "is no list of refs"),
    ],
)
def test_what_is_no_list_of_refs_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"refs\(unc\).p'.*{message}"):
        refer(write(tmp_path, content))


# ---------------------------------------------------------------- published numbers


@pytest.mark.parametrize(("dataset", "split_by", "splits"), PUBLISHED)
def test_every_published_split_opens_and_is_whole(
    tmp_path: Path, dataset: str, split_by: str, splits: dict[str, int]
) -> None:
    numbered = [split for split, count in splits.items() for _ in range(count)]
    refs = [ref(i, split) for i, split in enumerate(numbered)]
    root = write(tmp_path, refs, dataset, split_by)
    config = ReferData(format="refer", root=root, dataset=dataset, split_by=split_by)
    counts = split_counts(config)
    assert list(counts) == list(splits)
    for split, count in splits.items():
        assert counts[split] == SplitCount(count, count, 1, 0) and counts[split].is_whole
    last = config.model_copy(update={"split": list(splits)[-1]})
    source = last.open()
    assert source.num_expressions("p1.jpg") == list(splits.values())[-1]
    assert source.note is None


def test_a_partial_data_set_says_what_it_lacks(tmp_path: Path) -> None:
    refs = [ref(1, "train"), ref(2, "train", image_id=2), ref(3, "val"), ref(4, "own")]
    root = write(tmp_path, refs)
    counts = split_counts(ReferData(format="refer", root=root))
    assert list(counts) == ["train", "val", "testA", "testB", "own"]
    assert counts["train"] == SplitCount(2, 42404, 2, 1) and not counts["train"].is_whole
    assert counts["testB"] == SplitCount(0, 1810, 0, 0) and not counts["testB"].is_whole
    assert counts["own"] == SplitCount(1, None, 1, 0) and counts["own"].is_whole
    assert refer(root, split=["val", "train"]).note == (
        "refcoco (unc) is partial: train has 2 of 42404 published refs, 1 of 2 pictures are not "
        "on disk; val has 1 of 3811 published refs"
    )
    assert refer(root, split="own").note is None


def test_counts_need_no_pictures(tmp_path: Path) -> None:
    root = write(tmp_path / "data", [ref(1, "train"), ref(2, "train", image_id=2)])
    (root / "images/mscoco/images/train2014/p1.jpg").unlink()
    for folder in ("images/mscoco/images/train2014", "images/mscoco/images", "images/mscoco"):
        (root / folder).rmdir()
    (root / "images").rmdir()
    counts = split_counts(ReferData(format="refer", root=root))
    assert counts["train"] == SplitCount(2, 42404, 2, 2)


def test_one_s_own_data_set_has_no_expected_numbers(tmp_path: Path) -> None:
    root = write(tmp_path, [ref(1, "train")], "mine", "me")
    assert ("mine", "me") not in EXPECTED_REFS
    assert refer(root, dataset="mine", split_by="me").note is None


def test_a_ref_of_an_unlisted_picture_is_a_broken_picture(tmp_path: Path) -> None:
    source = refer(write(tmp_path, [ref(1, "train"), ref(2, "train", image_id=99)]))
    assert source.keys() == ["p1.jpg", "image_id 99"]
    assert source.num_expressions("image_id 99") == 1
    with pytest.raises(UnreadablePicture, match="image_id 99 is not listed in instances.json"):
        source.read("image_id 99")
    assert source.read("p1.jpg").expressions


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("segmentation", "area"),
    [
        ([SQUARE, [10, 10, 25, 10, 25, 25, 10, 25]], 225 + 225 - 100),  # the union
        ({"size": [30, 40], "counts": [0, 30, 1170]}, 30),  # one column
    ],
)
def test_polygons_are_a_union_and_run_lengths_are_read(
    tmp_path: Path, segmentation: object, area: int
) -> None:
    root = write(tmp_path, [ref(1, "train")])
    _annotate(root, segmentation)
    ((truth,), rejected) = refer(root).read_ground_truth("p1.jpg")
    assert truth.mask.sum() == area and not rejected


@pytest.mark.parametrize(
    "segmentation",
    [
        [5],
        {"size": [30, 40]},
        {"size": 5, "counts": [1200]},
        {"size": [30, 40], "counts": [1300, -100]},
        {"size": [40, 30], "counts": [1200]},
        [["a"] * 6],
        None,
    ],
)
def test_a_broken_segmentation_costs_its_expressions(tmp_path: Path, segmentation: object) -> None:
    root = write(tmp_path, [ref(1, "train")])
    _annotate(root, segmentation)
    masks, (rejected,) = refer(root).read_ground_truth("p1.jpg")
    assert not masks
    assert rejected.expression_id == "1-1" and rejected.reason.startswith("annotation 7: ")


def _annotate(root: Path, segmentation: object) -> None:
    path = root / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    instances["annotations"][0]["segmentation"] = segmentation
    path.write_text(json.dumps(instances))

"""REFER data sets in which something is wrong: the index, ids, sizes, annotations."""

from __future__ import annotations

import collections
import io
import json
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ppt.config import load_curriculum
from ppt.curriculum.inputs import prepare
from ppt.data.refer import ReferData, ReferSource
from ppt.data.refer_index import read_refs
from ppt.images.masks import encode_rle
from ppt.images.pictures import UnreadablePicture, check_picture
from ppt.jobs.cli import app
from ppt.steps.local_runner import LocalRunner
from ppt.store.nodes import Store
from ppt.tracking.record import RunRecord

PHOTOS = Path(__file__).parents[2] / "curricula" / "photos.yaml"
HEIGHT, WIDTH = 30, 40
SENTENCE = {"sent_id": 1, "sent": "a thing"}
BOX = [4.0, 6.0, 20.0, 6.0, 20.0, 16.0, 4.0, 16.0]  # columns 4 to 19, rows 6 to 15


def jpeg(width: int = WIDTH, height: int = HEIGHT, **options: Any) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", **options)
    return stream.getvalue()


def ref(number: int, **changes: Any) -> dict[str, Any]:
    """A ref of picture `number` and its annotation 100 + number, with two sentences."""
    sentences = [{"sent_id": 10 * number + i, "sent": f"thing {number}{i}"} for i in range(2)]
    made = {"ref_id": number, "ann_id": 100 + number, "image_id": number, "split": "train"}
    return {**made, "sentences": sentences, **changes}


def image(number: int, **changes: Any) -> dict[str, Any]:
    made = {"id": number, "file_name": f"p{number}.jpg", "width": WIDTH, "height": HEIGHT}
    return {**made, **changes}


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": 100 + number, "image_id": number, "segmentation": [BOX], **changes}


def write(
    root: Path,
    refs: list[Any] | bytes,
    images: Any = None,
    annotations: Any = None,
    pictures: dict[str, bytes] | None = None,
) -> Path:
    """Pictures p1.jpg and p2.jpg with a ref and an annotation each, or what is given instead."""
    folder, photos = root / "refcoco", root / "images"
    folder.mkdir(parents=True)
    photos.mkdir()
    index = refs if isinstance(refs, bytes) else pickle.dumps(refs, protocol=4)
    (folder / "refs(unc).p").write_bytes(index)
    instances = {
        "images": [image(1), image(2)] if images is None else images,
        "annotations": [annotation(1), annotation(2)] if annotations is None else annotations,
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    for name, data in (pictures or {"p1.jpg": jpeg(), "p2.jpg": jpeg()}).items():
        (photos / name).write_bytes(data)
    return root


def refer(root: Path, **changes: Any) -> ReferSource:
    return ReferData(format="refer", root=root, **changes).open()


def read_all(source: ReferSource) -> tuple[dict[str, str], dict[str, np.ndarray], dict[str, str]]:
    """The texts, the masks and the reasons of a data set by expression id.

    Every expression is in the samples or rejected, and every one in the samples has a mask or is
    rejected by the ground truth.
    """
    texts, masks, reasons = {}, {}, {}
    number = 0
    for key in source.keys():
        number += source.num_expressions(key)
        picture = source.read(key)
        truth, rejected = source.read_ground_truth(key)
        texts |= {e.expression_id: e.text for e in picture.expressions}
        masks |= {m.expression_id: m.mask for m in truth}
        reasons |= {r.expression_id: r.reason for r in [*picture.rejected, *rejected]}
        assert len(picture.expressions) == len(truth) + len(rejected)
        assert source.num_expressions(key) == len(picture.expressions) + len(picture.rejected)
    return texts, masks, reasons


def box(height: int, width: int, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


# ---------------------------------------------------------------- sentences and ids


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (None, "expression is no text: None"),
        (5, "expression is no text: 5"),
        (b"the dog", "expression is no text: b'the dog'"),
        (["the", "dog"], "expression is no text: ['the', 'dog']"),
        ("half \ud83d of a pair", "is no valid Unicode text"),
        ("x" * 10_001, "expression has 10,001 characters, more than 10,000"),
        ("?!", "expression '?!' has no word"),
    ],
)
def test_a_sentence_that_is_none_costs_itself(tmp_path: Path, sent: Any, reason: str) -> None:
    broken = ref(1, sentences=[{"sent_id": 1, "sent": sent}, {"sent_id": 2, "sent": " a dog "}])
    source = refer(write(tmp_path, [broken, ref(2)]))
    texts, masks, reasons = read_all(source)
    assert texts == {"1-2": "a dog", "2-20": "thing 20", "2-21": "thing 21"}
    assert masks.keys() == texts.keys()
    assert reasons.keys() == {"1-1"} and reason in reasons["1-1"]
    assert source.fingerprint and source.ground_truth_fingerprint


def test_accents_are_one_character(tmp_path: Path) -> None:
    decomposed = {"sent_id": 1, "sent": "the cafe\u0301"}
    texts, _, _ = read_all(refer(write(tmp_path, [ref(1, sentences=[decomposed])])))
    assert texts == {"1-1": "the caf\xe9"}


def test_refs_of_one_id_are_all_left_out(tmp_path: Path) -> None:
    refs = [ref(1), ref(2, ref_id=1), ref(1, ref_id=3, sentences=[{"sent_id": 5, "sent": "it"}])]
    source = refer(write(tmp_path, refs))
    texts, masks, reasons = read_all(source)
    assert texts == {"3-5": "it"} and masks.keys() == {"3-5"}
    assert reasons == {i: "ref_id 1 is there 2 times" for i in ("1-10", "1-11", "1-20", "1-21")}
    other = write(tmp_path / "other", [ref(1), ref(2, ref_id=1, split="val")])
    assert not read_all(refer(other))[2]  # each split has its own ids


def test_sentences_of_one_id_in_a_ref_are_all_left_out(tmp_path: Path) -> None:
    sentences = [{"sent_id": i, "sent": text} for i, text in ((7, "a"), (7, "b"), (8, "c"))]
    texts, _, reasons = read_all(refer(write(tmp_path, [ref(1, sentences=sentences)])))
    assert texts == {"1-8": "c"}
    assert reasons == {"1-7": "its ref has the sent_id of 1-7 2 times"}


def test_an_annotation_that_is_there_twice_or_of_another_picture_gives_no_mask(
    tmp_path: Path,
) -> None:
    refs = [ref(1, ann_id=0), ref(2, ann_id=0), ref(1, ref_id=3, ann_id=102), ref(2, ref_id=4)]
    annotations = [annotation(1, id=0), annotation(2, id=0), annotation(2)]
    texts, masks, reasons = read_all(refer(write(tmp_path, refs, annotations=annotations)))
    assert len(texts) == 8 - 4 + 4  # what is wrong with an annotation costs no sample
    assert masks.keys() == {"4-20", "4-21"}
    twice = "annotation 0: instances.json lists it 2 times"
    other = "annotation 102: it is of image 2, not of 1"
    assert reasons == {
        **dict.fromkeys(("1-10", "1-11", "2-20", "2-21"), twice),
        **dict.fromkeys(("3-10", "3-11"), other),
    }


def test_an_image_id_of_two_pictures_is_a_broken_picture(tmp_path: Path) -> None:
    images = [image(1), image(2), image(1, file_name="p3.jpg"), image(2)]
    source = refer(write(tmp_path, [ref(1), ref(2)], images))
    assert source.keys() == ["image_id 1", "p2.jpg"]
    with pytest.raises(UnreadablePicture, match="image_id 1 is there as several pictures in inst"):
        source.read("image_id 1")
    assert source.num_expressions("image_id 1") == 2
    assert len(source.read_ground_truth("image_id 1")[1]) == 2
    assert len(source.read_ground_truth("p2.jpg")[0]) == 2  # listed twice, the same each time


# ---------------------------------------------------------------- sizes


def truth_of(root: Path, picture: bytes, segmentation: Any, **listed: Any) -> Any:
    """The mask of a data set of one picture, or the reason why there is none."""
    root = write(
        root,
        [ref(1)],
        [image(1, **listed)],
        [annotation(1, segmentation=segmentation)],
        {"p1.jpg": picture},
    )
    source = refer(root)
    masks, rejected = source.read_ground_truth("p1.jpg")
    assert len(masks) + len(rejected) == 2
    if rejected:
        return rejected[0].reason
    assert masks[0].size == check_picture(source.read("p1.jpg").image).shape[:2]
    return masks[0].mask


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_an_annotation_of_another_scale_is_scaled(tmp_path: Path) -> None:
    double = [[2 * v for v in BOX]]
    expected = box(HEIGHT, WIDTH, (6, 16), (4, 20))
    found = truth_of(tmp_path / "1", jpeg(), double, width=2 * WIDTH, height=2 * HEIGHT)
    np.testing.assert_array_equal(found, expected)
    rle = encode_rle(box(2 * HEIGHT, 2 * WIDTH, (12, 32), (8, 40))).decode()
    run_lengths = {"size": [2 * HEIGHT, 2 * WIDTH], "counts": rle}
    np.testing.assert_array_equal(truth_of(tmp_path / "2", jpeg(), run_lengths), expected)
    none = {"width": None, "height": None}
    np.testing.assert_array_equal(truth_of(tmp_path / "3", jpeg(), [BOX], **none), expected)


def test_an_annotation_of_the_stored_pixels_is_turned_with_them(tmp_path: Path) -> None:
    picture = jpeg(exif=turned(6))  # 40x30 as it is stored, 30x40 upright
    upright = box(WIDTH, HEIGHT, (4, 20), (14, 24))
    np.testing.assert_array_equal(truth_of(tmp_path / "1", picture, [BOX]), upright)
    of_upright = [[14, 4, 24, 4, 24, 20, 14, 20]]
    listed = {"width": HEIGHT, "height": WIDTH}
    np.testing.assert_array_equal(truth_of(tmp_path / "2", picture, of_upright, **listed), upright)


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ({"width": HEIGHT, "height": WIDTH}, "it is of a picture of 30x40, the file is 40x30"),
        ({"width": 80, "height": 30}, "it is of a picture of 80x30, the file is 40x30"),
        ({"width": 40, "height": None}, r"whose \[height, width\] is (None, 40)"),
        ({"width": 0, "height": 0}, r"whose \[height, width\] is (0, 0)"),
        ({"width": "40", "height": "30"}, r"whose \[height, width\] is ('30', '40')"),
        ({"width": 4 * 10**6, "height": 3 * 10**6}, r"\[height, width\] is (3000000, 4000000)"),
    ],
)
def test_a_size_that_explains_nothing_gives_no_mask(
    tmp_path: Path, listed: dict[str, Any], reason: str
) -> None:
    told = truth_of(tmp_path, jpeg(), [BOX], **listed)
    assert told.startswith("annotation 101: ") and reason.replace("\\", "") in told


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[0, 0, 1e8, 0, 1e8, 1e8]], "polygon 0 lies far outside its picture of 40x30 pixels"),
        ([[50, 5, 60, 5, 60, 15]], "polygon covers no pixel of the picture"),
        (BOX, "polygon 0 is no list of numbers [x0, y0, x1, y1, ...]"),
        ({"size": [30, 40], "counts": "PP"}, "compressed run lengths are cut off"),
        ({"size": [30, 40], "counts": "5"}, "run lengths cover 5 pixels of 1200"),
        ({"size": [30, 40], "counts": [1200]}, "run lengths covers no pixel of the picture"),
        ({"size": [40, 30], "counts": [0, 1200]}, "it is of a picture of 30x40, the file is 40x30"),
        ({"counts": [0, 1200]}, "run lengths lack ['size']"),
    ],
)
def test_a_broken_annotation_gives_no_mask(tmp_path: Path, segmentation: Any, reason: str) -> None:
    assert truth_of(tmp_path, jpeg(), segmentation) == f"annotation 101: {reason}"


def test_what_decides_about_masks_is_in_their_fingerprint(tmp_path: Path) -> None:
    sources = [
        refer(write(tmp_path / str(number), [ref(1)], [given], annotations))
        for number, (given, annotations) in enumerate(
            [
                (image(1), [annotation(1)]),
                (image(1, width=80, height=60), [annotation(1)]),
                (image(1), [annotation(1, image_id=2)]),
                (image(1), [annotation(1), annotation(1)]),
            ]
        )
    ]
    assert len({source.fingerprint for source in sources}) == 1
    assert len({source.ground_truth_fingerprint for source in sources}) == 4


# ---------------------------------------------------------------- files that cannot be used


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ann_id": [104]}, r"ref 1 has the ann_id \[104\], which is no number and no text"),
        ({"ref_id": None}, "ref 1 has the ref_id None"),
        ({"image_id": 1.5}, "ref 1 has the image_id 1.5"),
        ({"split": ["train"]}, r"ref 1 has the split \['train'\], which is no text"),
        ({"sentences": None}, "ref 1 has no list of sentences: None"),
        ({"sentences": ["a dog"]}, r"ref 1 has no list of sentences: \['a dog'\]"),
        ({"sentences": [{"sent": "a dog"}]}, "ref 1 has a sentence without sent_id or sent"),
        ({"sentences": [{"sent_id": [1], "sent": "a"}]}, r"ref 1 has the sent_id \[1\]"),
    ],
)
def test_a_ref_of_another_form_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"refs\(unc\).p': {message}"):
        refer(write(tmp_path, [ref(1), ref(2, **changes)]))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (pickle.dumps([collections.OrderedDict(ref(1))]), "refuses to load collections.OrderedD"),
        (pickle.dumps([np.int64(1)]), "refuses to load numpy"),
        (b"\x80\x04]\x94(K\x01\x93.", "is no list of refs"),
        (b"\x80\x02Ptrain\n.", "is no list of refs"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "is no list of refs: MemoryError"),  # place 2,147,483,647
        (pickle.dumps([ref(1, sentences=[SENTENCE] * 9_999)] * 9_999), "99,980,001 sentences in"),
    ],
)
def test_a_pickle_of_other_things_is_named(tmp_path: Path, index: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"refs\(unc\).p':? .*{message}"):
        refer(write(tmp_path, index))


def test_the_limit_on_memory_is_lifted_again(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    path = write(tmp_path / "a", [ref(1), ref(2)]) / "refcoco" / "refs(unc).p"
    assert [one.ref_id for one in read_refs(path)] == [1, 2]
    with pytest.raises(ValueError, match="is no list of refs"):
        read_refs(write(tmp_path / "b", b"half") / "refcoco" / "refs(unc).p")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested(100_000), "instances.json' is no JSON: .*recursion"),
        ('{"images": ' + nested(100_000) + "}", "instances.json' is no JSON: .*recursion"),
        ('{"images": 5}', "`images` is no list: 5"),
        ('{"images": [5]}', "entry 0 of `images` has no id: 5"),
        ('{"images": [{"id": [1]}]}', "entry 0 of `images` has no id"),
        ('{"images": [{"id": 4}]}', "image 4 has no usable file_name: None"),
        ('{"images": [{"id": 4, "file_name": "\\ud83d.jpg"}]}', "image 4 has no usable file_name"),
    ],
)
def test_instances_of_another_form_are_named(tmp_path: Path, text: str, message: str) -> None:
    root = write(tmp_path, [ref(1)])
    (root / "refcoco" / "instances.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        refer(root)


def test_annotations_of_another_form_are_named(tmp_path: Path) -> None:
    for number, (given, message) in enumerate(
        ((5, "`annotations` is no list"), ([{"image_id": 1}], "entry 0 of `annotations` has no id"))
    ):
        source = refer(write(tmp_path / str(number), [ref(1)], annotations=given))
        assert source.read("p1.jpg").expressions
        with pytest.raises(ValueError, match=message):
            _ = source.ground_truth_fingerprint


def test_strings_of_python_2_are_utf8_or_latin1(tmp_path: Path) -> None:
    """The opcode for bytes that were a `str`, which Python 3 never writes."""
    data = pickle.dumps([ref(1, sentences=[{"sent_id": 1, "sent": "SENTENCE"}])], protocol=2)
    new = b"X\x08\x00\x00\x00SENTENCE"
    assert new in data
    for number, text in enumerate((b"caf\xc3\xa9 table", b"caf\xe9 table")):
        old = b"T" + len(text).to_bytes(4, "little") + text
        source = refer(write(tmp_path / str(number), data.replace(new, old)))
        assert read_all(source)[0] == {"1-1": "caf\xe9 table"}


# ---------------------------------------------------------------- through prepare


def overrides(folder: Path, root: Path) -> list[str]:
    """Every data set is the one in `root`."""
    group = f"{{format: refer, root: {root}}}"
    return [
        f"store={folder / 'runs'}",
        f"data.object_centric.root={root}",
        *(f"data.{role}={group}" for role in ("referring", "validation", "evaluation")),
    ]


def test_what_goes_in_comes_out_or_is_quarantined(tmp_path: Path) -> None:
    """A data set with a fault of each kind, in which only two expressions are whole."""
    refs = [
        ref(1),
        ref(2, sentences=[{"sent_id": 1, "sent": None}, {"sent_id": 2, "sent": "a thing"}]),
        ref(3),
        ref(4),
        ref(5),
    ]
    pictures = {
        "p1.jpg": jpeg(),
        "p2.jpg": jpeg(),
        "p3.jpg": jpeg()[:300],
        "p4.jpg": jpeg(800, 8),
        "p5.jpg": jpeg(),
    }
    root = write(
        tmp_path / "data",
        refs,
        [image(number) for number in range(1, 6)],
        [
            annotation(1),
            annotation(2, segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]),
            *(annotation(i) for i in (3, 4, 5, 5)),
        ],
        pictures,
    )
    curriculum = load_curriculum(PHOTOS, overrides(tmp_path, root))
    record = RunRecord(curriculum, str(tmp_path))
    prepare(LocalRunner(Store(curriculum.store), curriculum.resources), record, ["evaluation"])
    tables = record.data["evaluation"]
    assert tables.samples.counts() == {
        "pictures": {"in": 5, "out": 3, "quarantined": 2},
        "expressions": {"in": 10, "out": 5, "quarantined": 5},
    }
    truth = tables.ground_truth.counts()["expressions"]
    assert truth == {"in": 9, "out": 2, "quarantined": 7}
    reasons = {
        r["expression_id"]: r["reason"] for r in tables.ground_truth.quarantine().to_pylist()
    }
    assert "far outside" in reasons["2-2"] and "runcated" in reasons["3-30"]
    assert "800x8, may be at most 20" in reasons["4-40"] and "2 times" in reasons["5-51"]


def test_a_broken_index_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    root = write(tmp_path / "data", [ref(1, sentences=None)])
    result = CliRunner().invoke(
        app, ["prepare", str(PHOTOS), "--local", *overrides(tmp_path, root)]
    )
    assert result.exit_code == 2
    output = " ".join(result.output.split())
    assert output.startswith("error: data.referring: ")
    assert output.endswith("ref 0 has no list of sentences: None")

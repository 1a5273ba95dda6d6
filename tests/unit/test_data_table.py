"""One's own data: a table of pictures, expressions and masks, with everything that goes wrong."""

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppt.data.table import TableData
from ppt.images.pictures import UnreadablePicture, check_picture

HEIGHT, WIDTH = 30, 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures a.jpg and pictures/b.png, and a mask of a.jpg whose object has 50 pixels."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    pixels.save(tmp_path / "a.jpg")
    (tmp_path / "pictures").mkdir()
    pixels.save(tmp_path / "pictures" / "b.png")
    save_mask(tmp_path / "mask.png", box_mask())
    return tmp_path


def box_mask(value: int = 1) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:15, 20:30] = value
    return mask


def save_mask(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(path)


def csv_table(folder: Path, text: str, name: str = "table.csv"):
    (folder / name).write_text(text)
    return TableData(format="table", path=folder / name).open()


def json_table(folder: Path, *rows: object):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "table.jsonl").write_text("\n".join(lines))
    return TableData(format="table", path=folder / "table.jsonl").open()


def truth_of(folder: Path, **cells: object):
    """(mask or None, reason or None) of one row of a.jpg."""
    source = json_table(folder, {"picture": "a.jpg", "expression": "the dog", **cells})
    masks, rejected = source.read_ground_truth("a.jpg")
    assert len(masks) + len(rejected) == 1
    return (masks[0].mask, None) if masks else (None, rejected[0].reason)


# ---------------------------------------------------------------- what is read


def test_csv(folder: Path) -> None:
    source = csv_table(
        folder,
        "picture,expression,id,kind,mask,polygon,note\n"
        'a.jpg,"the dog, left",d1,position,mask.png,,x\n'
        'pictures/b.png,the cat,,,,"[5, 5, 20, 5, 20, 20, 5, 20]",\n'
        'a.jpg, the dog\'s ball ,,,,"[[5,5,20,5,20,20,5,20],[10,10,25,10,25,25,10,25]]",\n',
    )
    assert source.keys() == ["a.jpg", "pictures/b.png"]
    assert [source.num_expressions(key) for key in source.keys()] == [2, 1]
    picture = source.read("a.jpg")
    assert check_picture(picture.image).shape == (HEIGHT, WIDTH, 3)
    assert picture.class_name is None and not picture.rejected
    assert [(e.expression_id, e.text, e.kind) for e in picture.expressions] == [
        ("d1", "the dog, left", "position"),
        ("a.jpg-1", "the dog's ball", None),
    ]
    masks, rejected = source.read_ground_truth("a.jpg")
    assert not rejected
    assert [(m.expression_id, m.kind) for m in masks] == [("d1", "position"), ("a.jpg-1", None)]
    assert (masks[0].mask == box_mask().astype(bool)).all()
    assert masks[1].mask.sum() == 225 + 225 - 100  # a union
    ((truth,), _) = source.read_ground_truth("pictures/b.png")
    assert truth.mask.sum() == 225 and truth.size == (HEIGHT, WIDTH)


def test_json_lines_say_the_same_as_csv(folder: Path) -> None:
    square = [5, 5, 20, 5, 20, 20, 5, 20]
    lines = json_table(
        folder,
        {"picture": "a.jpg", "expression": "the dog", "id": 7, "mask": "mask.png"},
        "",
        {"picture": "./a.jpg", "expression": "the ball", "polygon": [square]},
    )
    table = csv_table(
        folder,
        "\ufeffpicture,expression,id,mask,polygon\r\na.jpg,the dog,7,mask.png,\r\n"
        f'./a.jpg,the ball,,,"{square}"\r\n',
    )
    assert lines.keys() == table.keys() == ["a.jpg"]
    assert lines.read("a.jpg") == table.read("a.jpg")
    assert lines.fingerprint == table.fingerprint
    for ours, theirs in zip(
        *(s.read_ground_truth("a.jpg")[0] for s in (lines, table)), strict=True
    ):
        assert ours.expression_id == theirs.expression_id and (ours.mask == theirs.mask).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_mask_of_any_mode(folder: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(box_mask(1).astype(np.uint16) * 300)
    elif mode == "P":
        picture = Image.fromarray(box_mask(1), "P")
        picture.putpalette([0, 0, 0, 128, 0, 0])
    else:
        picture = Image.fromarray(box_mask(255)).convert(mode)
    picture.save(folder / "mode.png")
    mask, _ = truth_of(folder, mask="mode.png")
    assert (mask == box_mask().astype(bool)).all()


def test_a_mask_is_of_the_picture_as_it_is_shown(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    with Image.open(folder / "a.jpg") as picture:
        picture.save(folder / "side.jpg", exif=exif)
    save_mask(folder / "upright.png", np.ones((WIDTH, HEIGHT), np.uint8))
    source = json_table(
        folder, {"picture": "side.jpg", "expression": "all of it", "mask": "upright.png"}
    )
    ((truth,), _) = source.read_ground_truth("side.jpg")
    assert truth.size == (WIDTH, HEIGHT) == check_picture(source.read("side.jpg").image).shape[:2]


# ---------------------------------------------------------------- broken rows


def test_broken_lines_are_pictures_that_cannot_be_read(folder: Path) -> None:
    source = json_table(
        folder,
        {"picture": "a.jpg", "expression": "the dog"},
        '{"picture": "a.jpg", "expression": ',
        '["a.jpg", "the dog"]',
        {"expression": "the dog"},
        {"picture": "gone.jpg", "expression": "the dog"},
        '{"picture": "a.jpg", "expression": "half \\ud83d"}',
        {"picture": "long" * 1000, "expression": "the dog"},
    )
    reasons = {
        "table.jsonl line 2": "line 2 is no JSON: ",
        "table.jsonl line 3": "line 3 is no JSON object",
        "table.jsonl line 4": "line 4 names no picture",
        "gone.jpg": "^line 5: picture gone.jpg is missing from",
        "table.jsonl line 6": "line 6 is no JSON: .*surrogate",
        "long" * 1000: "cannot be read: .*too long",
    }
    assert source.fingerprint
    assert source.keys() == ["a.jpg", *reasons]
    for key, reason in reasons.items():
        assert source.num_expressions(key) == 1
        with pytest.raises(UnreadablePicture, match=reason):
            source.read(key)
    assert len(source.read("a.jpg").expressions) == 1


def test_a_row_with_a_comma_too_many_is_told(folder: Path) -> None:
    source = csv_table(folder, "picture,expression\na.jpg,the dog\na.jpg,the dog, left\n")
    with pytest.raises(UnreadablePicture, match="line 3 has 3 cells, the header 2: .*quotes"):
        source.read("table.csv line 3")


def test_a_row_over_several_lines_is_told(folder: Path) -> None:
    """A quote that is not closed makes one row of all rows up to the next quote."""
    source = csv_table(
        folder, 'picture,expression\na.jpg,the dog\na.jpg,"the cat\na.jpg,a bird"\na.jpg,a cow\n'
    )
    assert source.keys() == ["a.jpg", "table.csv line 3"]
    assert [e.text for e in source.read("a.jpg").expressions] == ["the dog", "a cow"]
    with pytest.raises(UnreadablePicture, match="line 3 goes on to line 4: .*close each quote"):
        source.read("table.csv line 3")


def test_a_key_that_comes_twice_in_a_line_is_told(folder: Path) -> None:
    source = json_table(
        folder,
        {"picture": "a.jpg", "expression": "the dog"},
        '{"picture": "a.jpg", "expression": "the cat", "expression": "a cow"}',
        '{"picture": "a.jpg", "expression": "a bird", "note": 1, "note": 2}',
    )
    assert [e.text for e in source.read("a.jpg").expressions] == ["the dog", "a bird"]
    with pytest.raises(UnreadablePicture, match="line 2 is no JSON: 'expression' is there twice"):
        source.read("table.jsonl line 2")


@pytest.mark.parametrize(
    ("expression", "reason"),
    [(["a"], r"is no text: \['a'\]"), (0, "is no text: 0"), (False, "is no text: False")],
)
def test_an_expression_that_is_no_text(folder: Path, expression: object, reason: str) -> None:
    source = json_table(folder, {"picture": "a.jpg", "expression": expression})
    (rejected,) = source.read("a.jpg").rejected
    assert re.search(f"line 1: expression {reason}", rejected.reason)


def test_empty_expressions_and_ids_that_come_twice_are_rejected(folder: Path) -> None:
    source = json_table(
        folder,
        {"picture": "a.jpg", "expression": "the dog", "id": "x"},
        {"picture": "a.jpg", "expression": "  "},
        {"picture": "a.jpg", "expression": None},
        {"picture": "a.jpg", "expression": "the ball", "id": "x"},
        {"picture": "a.jpg", "expression": 5, "id": "y"},
    )
    picture = source.read("a.jpg")
    assert source.num_expressions("a.jpg") == 5
    assert [e.text for e in picture.expressions] == ["the dog"]
    assert [(r.expression_id, r.reason) for r in picture.rejected] == [
        ("a.jpg-1", "line 2: expression '  ' has no word"),
        ("a.jpg-2", "line 3: expression '' has no word"),
        ("table.jsonl line 4: x", "line 4: id 'x' is line 1's"),
        ("y", "line 5: expression is no text: 5"),
    ]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({}, "no mask, no polygon"),
        ({"mask": "mask.png", "polygon": [1, 1, 9, 1, 9, 9]}, "both mask and polygon are given"),
        ({"mask": "nowhere.png"}, "mask nowhere.png is missing"),
        ({"mask": "small.png"}, "mask small.png is 10x20, its picture 40x30"),
        ({"mask": "a.jpg"}, "mask is a JPEG"),
        ({"mask": "text.png"}, "no known picture format"),
        ({"mask": "black.png"}, "mask black.png covers no pixel"),
        ({"mask": 5}, "mask is no path: 5"),
        ({"polygon": [[1, 1, 9, 9]]}, "polygon 0 has 2 points"),
        ({"polygon": "[1, 1, 9"}, "polygon is no JSON list"),
        ({"polygon": [[1, 1, 9, 1, 9, 9], ["a"] * 6]}, "polygon 1 is no list of numbers"),
        ({"polygon": {"counts": 5}}, "polygon 0 is no list of numbers"),
        ({"polygon": []}, "polygon 0 has 0 points"),
        ({"polygon": [0, 0, 1e9, 0, 1e9, 1e9]}, "far outside its picture of 40x30"),
        ({"polygon": [0, 0, math.nan, 0, 9, 9]}, "polygon 0 has a coordinate that is no finite"),
        ({"polygon": "[0, 0, 1e999, 0, 9, 9]"}, "polygon 0 has a coordinate that is no finite"),
        ({"polygon": [0, 0, 10**400, 0, 9, 9]}, "far outside its picture of 40x30"),
        ({"polygon": [0.1, 0.1, 0.2, 0.1, 0.2, 0.2]}, "polygon covers no pixel"),
        ({"polygon": [50, 5, 60, 5, 60, 15]}, "polygon covers no pixel"),
        ({"polygon": [[1, 1, 9, 1, True, 9]]}, "polygon 0 is no list of numbers"),
        ({"mask": "long.png"}, "mask is 400x10, may be at most 20 times"),
    ],
)
def test_a_broken_mask_costs_one_expression(folder: Path, cells: dict, reason: str) -> None:
    save_mask(folder / "small.png", np.ones((20, 10), np.uint8))
    save_mask(folder / "black.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    save_mask(folder / "long.png", np.ones((10, 400), np.uint8))
    (folder / "text.png").write_text("no picture")
    mask, told = truth_of(folder, **cells)
    assert mask is None and told.startswith("line 1: ") and reason in told


def test_a_broken_picture_has_no_truth(folder: Path) -> None:
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    row = {"picture": "b.jpg", "expression": "dog", "mask": "mask.png"}
    source = json_table(folder, row, row)
    with pytest.raises(UnreadablePicture, match="^line 1: .*(?i:truncated)"):
        source.read("b.jpg")
    masks, rejected = source.read_ground_truth("b.jpg")
    assert not masks
    for line, broken in enumerate(rejected, 1):
        assert broken.reason.startswith(f"line {line}: ") and "runcated" in broken.reason
    assert len(rejected) == 2


# ---------------------------------------------------------------- tables that cannot be used


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"picture;expression\na.jpg;dog\n", "has semicolons between its columns"),
        ("t.csv", b"picture,text\na.jpg,dog\n", r"no column \['expression'\] \(there: \['picture"),
        ("t.jsonl", b'{"image": "a.jpg"}\n', r"no column \['picture', 'expression'\]"),
        ("t.csv", b"picture,expression\n", "has no row"),
        ("t.jsonl", b"\n\n", "has no row"),
        ("t.csv", b"", "has no row"),
        (
            "t.csv",
            "picture,expression\na.jpg,caf\xe9\n".encode("latin1"),
            r"is not UTF-8 \(line 2, byte 0xe9\).* save it as UTF-8",
        ),
        ("t.csv", b'"picture"\t"expression"\na.jpg\tdog\n', "has tabs between its columns"),
        ("t.csv", b'picture,expression\na.jpg,"dog\n', "line 2 is no CSV"),
        ("t.csv", b'picture,expression\na.jpg,dog\na.jpg,"cat\na.jpg,cow\n', "opens after line 2"),
        ("t.csv", b"picture,expression,picture\na,b,c\n", "has the column 'picture' twice"),
        ("t.xlsx", b"PK", r"must end in \.csv, \.jsonl"),
    ],
)
def test_an_unusable_table_is_one_clear_error(
    folder: Path, name: str, content: bytes, message: str
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"table '.*{name}'.*{message}"):
        TableData(format="table", path=folder / name).open()


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.csv' is no file: set `path`"):
        TableData(format="table", path=tmp_path / "nowhere.csv").open()


def test_a_table_without_truth_trains_but_is_no_evaluation(folder: Path) -> None:
    source = json_table(folder, {"picture": "a.jpg", "expression": "the dog"})
    assert source.read("a.jpg").expressions and source.fingerprint
    with pytest.raises(ValueError, match="no column 'mask' or 'polygon', which validation"):
        _ = source.ground_truth_fingerprint


# ---------------------------------------------------------------- fingerprints


def test_masks_change_the_truth_and_no_sample(folder: Path) -> None:
    row = {"picture": "a.jpg", "expression": "the dog", "mask": "mask.bmp"}
    save_mask(folder / "mask.bmp", box_mask())
    before = json_table(folder, row)
    prints = before.fingerprint, before.ground_truth_fingerprint
    size = (folder / "mask.bmp").stat().st_size
    save_mask(folder / "mask.bmp", box_mask()[::-1])
    assert (folder / "mask.bmp").stat().st_size == size
    repainted = json_table(folder, row)
    assert repainted.fingerprint == prints[0]
    assert repainted.ground_truth_fingerprint != prints[1]
    polygon = json_table(folder, {**row, "mask": None, "polygon": [1, 1, 9, 1, 9, 9]})
    kind = json_table(folder, {**row, "kind": "colour"})
    for other in (polygon, kind):
        assert other.fingerprint == prints[0]
        assert other.ground_truth_fingerprint != repainted.ground_truth_fingerprint


def test_texts_and_pictures_change_the_samples(folder: Path) -> None:
    row = {"picture": "a.jpg", "expression": "the dog"}
    before = json_table(folder, row).fingerprint
    assert json_table(folder, {**row, "expression": "the cat"}).fingerprint != before
    stream = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(stream, "JPEG")
    (folder / "a.jpg").write_bytes(stream.getvalue())
    assert json_table(folder, row).fingerprint != before

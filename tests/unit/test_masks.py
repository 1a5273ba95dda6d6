"""Polygons, run lengths, boxes and overlap against pycocotools and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from ppt.images.masks import (
    annotation_to_mask,
    decode_rle,
    decode_rles,
    encode_rle,
    fit_mask,
    iou,
    mask_to_box,
    polygons_to_mask,
    rle_boxes,
)

SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
SHIFTED = [5, 5, 11, 5, 11, 11, 5, 11]

masks = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 17)))


def test_overlapping_polygons_are_united():
    both = polygons_to_mask([SQUARE, SHIFTED], (12, 12))
    one, other = (polygons_to_mask([p], (12, 12)) for p in (SQUARE, SHIFTED))
    assert both[6, 6] and (both == one | other).all()
    assert both.sum() == 36 + 36 - 9


def test_polygons_agree_with_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(20):
        polygons = [rng.uniform(0, 40, 10).tolist() for _ in range(2)]
        expected = coco.decode(coco.merge(coco.frPyObjects(polygons, 40, 50)))
        np.testing.assert_array_equal(polygons_to_mask(polygons, (40, 50)), expected.astype(bool))


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([SQUARE, [1, 1, 5, 5]], "polygon 1 has 2 points, needs at least 3"),
        ([[]], "polygon 0 has 0 points"),
        ([[1, 1, 5, 5, 3, 2, 7]], "polygon 0 has 7 numbers"),
        ([[1, 1, float("nan"), 5, 3, 2]], "polygon 0 .* no finite number"),
        ([], "no polygon"),
        ([[0, 0, 1e8, 0, 1e8, 1e8]], "polygon 0 lies far outside its picture of 14x12 pixels"),
        ([SQUARE, [0, 0, 1e7, 0, 5, 5]], "polygon 1 lies far outside"),
        ([[-15, 0, 5, 0, 5, 5]], "polygon 0 lies far outside"),
        ([[0, 0, 10**400, 0, 5, 5]], "polygon 0 lies far outside"),
        ([[0, 0, float("inf"), 0, 5, 5]], "polygon 0 .* no finite number"),
        ([[0, 0, True, 0, 5, 5]], "polygon 0 is no list of numbers"),
        (SQUARE, "polygon 0 is no list of numbers"),
        ([[0, 0, 14, 12] * 60_000], "outlines are 2,2.* long, over 2,000,000"),
        ([[20, 2, 25, 2, 25, 9]], "polygon covers no pixel"),  # beside the picture
        ([[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]], "polygon covers no pixel"),
        ([[3, 3, 3, 3, 3, 3]], "polygon covers no pixel"),
    ],
)
def test_a_broken_polygon_is_named(polygons, message):
    with pytest.raises(ValueError, match=message):
        polygons_to_mask(polygons, (12, 14))


def test_what_reaches_out_of_the_picture_is_cut_off():
    mask = polygons_to_mask([[-4, -3, 6, -3, 6, 5, -4, 5]], (12, 14))
    expected = np.zeros((12, 14), bool)
    expected[:5, :6] = True
    np.testing.assert_array_equal(mask, expected)


def test_run_lengths_of_an_annotation():
    mask = polygons_to_mask([SQUARE], (12, 10))
    compressed = {"size": [12, 10], "counts": encode_rle(mask).decode()}
    plain = {"size": [2, 3], "counts": [1, 2, 3]}
    np.testing.assert_array_equal(annotation_to_mask(compressed, (12, 10)), mask)
    assert annotation_to_mask(plain, (2, 3)).T.ravel().tolist() == [0, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"run lengths of \[12, 10\], picture is \[10, 12\]"):
        annotation_to_mask(compressed, (10, 12))
    with pytest.raises(ValueError, match="run lengths cover 5 pixels of 6"):
        annotation_to_mask({"size": [2, 3], "counts": [1, 2, 2]}, (2, 3))
    with pytest.raises(ValueError, match="NoneType"):
        annotation_to_mask(None, (2, 3))


WHOLE = encode_rle(polygons_to_mask([SQUARE], (12, 10))).decode()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (WHOLE[:-1], "compressed run lengths are cut off"),
        (WHOLE[:3], r"run lengths cover \d+ pixels of 120"),
        (WHOLE + "1", "run lengths cover 1.. pixels of 120"),
        (WHOLE.encode()[:-2], r"run lengths cover \d+ pixels of 120"),
        ("", "run lengths cover 0 pixels of 120"),
        ("hP", "compressed run lengths are cut off"),
        ("5 5", "compressed run lengths hold the character ' '"),
        ("P" * 10_000, "a number of more than 64 bits"),
        ([120, 10, -10], "a run length is negative: -10"),
        ([1, 2, 3], "run lengths cover 6 pixels of 120"),
        ([120], "run lengths covers no pixel"),
        ([60.0, 60.0], "neither a list of integers nor compressed"),
        (120, "neither a list of integers nor compressed"),
    ],
)
def test_run_lengths_that_are_not_those_of_the_picture(counts, message):
    with pytest.raises(ValueError, match=message):
        annotation_to_mask({"size": [12, 10], "counts": counts}, (12, 10))


@given(masks)
@settings(max_examples=60, deadline=None)
def test_compressed_run_lengths_are_read_as_pycocotools_reads_them(mask):
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    for counts in (rle["counts"], rle["counts"].decode()):
        if mask.any():
            found = annotation_to_mask({"size": list(mask.shape), "counts": counts}, mask.shape)
            np.testing.assert_array_equal(found, coco.decode(rle).astype(bool))


# ---------------------------------------------------------------- the size of the annotated picture


def box(size, rows, columns):
    mask = np.zeros(size, bool)
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


@pytest.mark.parametrize(
    ("annotated", "size", "orientation", "expected"),
    [
        (box((24, 32), (6, 18), (4, 16)), (24, 32), 1, box((24, 32), (6, 18), (4, 16))),
        (box((24, 32), (6, 18), (4, 16)), (12, 16), 1, box((12, 16), (3, 9), (2, 8))),
        (box((12, 16), (3, 9), (2, 8)), (24, 32), 3, box((24, 32), (6, 18), (4, 16))),
        # The file stores 16x12 pixels; upright its picture is 12x16.
        (box((12, 16), (3, 9), (2, 8)), (16, 12), 6, box((16, 12), (2, 8), (3, 9))),
        (box((12, 16), (0, 2), (1, 8)), (16, 12), 6, box((16, 12), (1, 8), (10, 12))),
        (box((12, 16), (0, 2), (1, 8)), (16, 12), 8, box((16, 12), (8, 15), (0, 2))),
        (box((24, 32), (0, 4), (2, 16)), (16, 12), 6, box((16, 12), (1, 8), (10, 12))),
        (box((16, 12), (1, 8), (10, 12)), (16, 12), 6, box((16, 12), (1, 8), (10, 12))),
        # Rounded to whole pixels, 481x640 at half the scale is 240x320 or 241x320.
        (box((640, 481), (0, 320), (0, 481)), (320, 240), 1, box((320, 240), (0, 160), (0, 240))),
        (box((640, 481), (0, 320), (0, 481)), (320, 241), 1, box((320, 241), (0, 160), (0, 241))),
    ],
)
def test_a_mask_is_brought_to_the_upright_picture(annotated, size, orientation, expected):
    np.testing.assert_array_equal(fit_mask(annotated, size, orientation), expected)


@pytest.mark.parametrize(
    ("annotated", "size", "orientation"),
    [
        ((16, 12), (12, 16), 1),
        ((16, 12), (12, 16), 3),
        ((12, 18), (12, 16), 1),
        ((30, 40), (32, 40), 6),
    ],
)
def test_a_mask_of_another_picture_is_refused(annotated, size, orientation):
    told = f"a picture of {annotated[1]}x{annotated[0]}, the file is {size[1]}x{size[0]}"
    with pytest.raises(ValueError, match=told):
        fit_mask(np.ones(annotated, bool), size, orientation)


def test_a_mask_that_scaling_leaves_nothing_of_is_refused():
    with pytest.raises(ValueError, match="scaled to 16x12 pixels covers no pixel"):
        fit_mask(box((120, 160), (0, 1), (0, 1)), (12, 16), 1)


@given(masks)
@settings(max_examples=60, deadline=None)
def test_run_lengths_round_trip(mask):
    counts = encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(counts, *mask.shape), mask)
    assert coco.area({"size": list(mask.shape), "counts": counts}) == mask.sum()


@given(arrays(bool, st.tuples(st.integers(0, 4), st.just(7), st.just(5))))
@settings(max_examples=40, deadline=None)
def test_many_masks_at_once(stack):
    counts = [encode_rle(mask) for mask in stack]
    np.testing.assert_array_equal(decode_rles(counts, 7, 5), stack)
    boxes = [mask_to_box(mask) if mask.any() else (0, 0, 0, 0) for mask in stack]
    np.testing.assert_array_equal(rle_boxes(counts, 7, 5), np.array(boxes).reshape(-1, 4))


@given(masks, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_iou_agrees_with_pycocotools(mask, seed):
    other = np.random.default_rng(seed).random(mask.shape) < 0.4
    rles = [{"size": list(m.shape), "counts": encode_rle(m)} for m in (mask, other)]
    expected = coco.iou(rles[:1], rles[1:], [0])[0, 0] if (mask | other).any() else 0
    assert iou(mask, other) == pytest.approx(expected)
    assert iou(mask, mask) == float(mask.any())


def test_box_is_tight():
    mask = np.zeros((9, 9), bool)
    mask[2:5, 3:8] = True
    assert mask_to_box(mask) == (3, 2, 8, 5)
    with pytest.raises(ValueError, match="empty"):
        mask_to_box(np.zeros((3, 3), bool))

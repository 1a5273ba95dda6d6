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
    ],
)
def test_a_broken_polygon_is_named(polygons, message):
    with pytest.raises(ValueError, match=message):
        polygons_to_mask(polygons, (12, 12))


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

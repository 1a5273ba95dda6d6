"""mIoU, oIoU and P@X by hand, and that no order of the sums matters."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from ppt.evaluation.metrics import METRICS, Overlaps, measure, overlap

sentences = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)).map(lambda p: (min(p), max(p))),
    min_size=1,
    max_size=30,
)


def measured(pairs):
    return measure(Overlaps.of(pairs))


def test_by_hand():
    values = measured([(30, 40), (1, 10), (0, 7), (50, 50)])
    assert list(values) == list(METRICS)
    assert values["mIoU"] == pytest.approx(100 * (0.75 + 0.1 + 0 + 1) / 4)
    assert values["oIoU"] == pytest.approx(100 * 81 / 107)
    assert values["P@0.3"] == values["P@0.5"] == values["P@0.7"] == 50
    assert values["P@0.8"] == values["P@0.9"] == 25


def test_an_empty_prediction_and_an_empty_union_stay_in_the_mean():
    values = measured([(0, 20), (0, 0), (10, 10)])
    assert values["mIoU"] == pytest.approx(100 / 3)
    assert values["P@0.3"] == pytest.approx(100 / 3)


def test_a_threshold_is_reached_by_equality():
    assert measured([(3, 10)])["P@0.3"] == 100
    assert measured([(7, 10)])["P@0.7"] == 100
    assert measured([(6, 10)])["P@0.7"] == 0


def test_every_order_of_the_sentences_gives_the_same_bits():
    pairs = [(1, 3), (2, 7), (5, 9), (0, 4), (7, 11), (13, 13)]
    whole = measured(pairs)
    assert all(measured(order) == whole for order in permutations(pairs))


@given(sentences)
@settings(max_examples=50, deadline=None)
def test_means_are_exact_and_bounded(pairs):
    values = measured(pairs)
    mean = math.fsum(i / u if u else 0 for i, u in pairs) / len(pairs)
    assert values["mIoU"] == pytest.approx(100 * mean, abs=1e-9)
    assert all(0 <= value <= 100 for value in values.values())
    assert values["P@0.3"] >= values["P@0.5"] >= values["P@0.7"] >= values["P@0.9"]


def test_nothing_measured_is_not_zero():
    assert all(math.isnan(value) for value in measured([]).values())


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="5 and union 4"):
        Overlaps.of([(1, 1), (5, 4)])


def test_overlap_counts_pixels():
    a = np.zeros((4, 4), bool)
    b = a.copy()
    a[:2], b[1:3] = True, True
    assert overlap(a, b) == (4, 12)
    with pytest.raises(ValueError, match="different sizes"):
        overlap(a, b[:3])


# ---------------------------------------------------------------- parity


def masks(seed):
    """20 predictions and truths of one size each: some empty, some equal, some apart."""
    rng = np.random.default_rng(seed)
    for i in range(20):
        height, width = rng.integers(5, 60, 2)
        truth = np.zeros((height, width), bool)
        top, left = rng.integers(0, height - 2), rng.integers(0, width - 2)
        truth[top : top + rng.integers(1, height), left : left + rng.integers(1, width)] = True
        prediction = np.roll(truth, rng.integers(0, 3, 2), (0, 1)) ^ (rng.random(truth.shape) < 0.1)
        yield {1: np.zeros_like(truth), 2: truth}.get(i, prediction), truth


@pytest.mark.parametrize("seed", range(5))
def test_the_same_as_numpy_and_pycocotools(seed):
    pairs, by_coco, by_numpy = [], [], []
    intersections, unions = 0, 0
    for prediction, truth in masks(seed):
        pairs.append(overlap(prediction, truth))
        a, b = (coco.encode(np.asfortranarray(m.astype(np.uint8))) for m in (prediction, truth))
        by_coco.append(float(coco.iou([a], [b], [0])[0, 0]))
        by_numpy.append((prediction * truth).sum() / np.maximum(prediction, truth).sum())
        intersections += int(coco.area(coco.merge([a, b], intersect=True)))
        unions += int(coco.area(coco.merge([a, b])))
        assert Overlaps.of(pairs[-1:]).iou[0] == pytest.approx(by_coco[-1], abs=1e-12)
    assert by_coco[1] == 0 and by_coco[2] == 1  # the empty prediction, the perfect one
    values = measured(pairs)
    assert values["mIoU"] == pytest.approx(100 * np.mean(by_coco), abs=1e-9)
    assert values["mIoU"] == pytest.approx(100 * np.mean(by_numpy), abs=1e-9)
    assert values["oIoU"] == pytest.approx(100 * intersections / unions, abs=1e-9)
    for tenth in (3, 5, 6, 7, 8, 9):
        share = 100 * np.mean(np.array(by_numpy) >= tenth / 10)
        assert values[f"P@0.{tenth}"] == pytest.approx(share, abs=1e-9)

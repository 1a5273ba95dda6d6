"""The protocols by hand: which sentences, at which size, above which probability."""

import math

import numpy as np
import pytest

from ppt.evaluation.protocols import CRIS, LAVT, OURS, PROTOCOLS

TRUTHS = [
    {"picture": "a", "expression_id": "1-1", "mask": b"left"},
    {"picture": "a", "expression_id": "1-2", "mask": b"left"},
    {"picture": "a", "expression_id": "2-3", "mask": b"right"},
    {"picture": "b", "expression_id": "3-4", "mask": b"left"},
    {"picture": "b", "expression_id": "3-5", "mask": b"left"},
]


def scored(protocol):
    return [row["expression_id"] for row in protocol.scored(TRUTHS)]


def test_ours_is_every_sentence_at_its_own_size():
    assert scored(OURS) == ["1-1", "1-2", "2-3", "3-4", "3-5"]
    mask = np.eye(5, 7, dtype=bool)
    assert OURS.compared(mask) is mask
    assert OURS.mask_threshold == 0.0


def test_cris_takes_the_first_sentence_of_each_object():
    assert scored(CRIS) == ["1-1", "2-3", "3-4"]
    assert 1 / (1 + math.exp(-CRIS.mask_threshold)) == pytest.approx(0.35)
    assert CRIS.compared(mask := np.ones((3, 4), bool)) is mask


@pytest.mark.parametrize("size", [(100, 37), (480, 480), (641, 427), (3, 1000)])
def test_lavt_compares_at_480_by_the_nearest_pixel(size):
    # Sizes of which no pixel of 480 lies right between two, where either is the nearest.
    assert scored(LAVT) == scored(OURS) and LAVT.mask_threshold == 0.0
    mask = np.random.default_rng(0).random(size) < 0.5
    rows, columns = (np.floor((np.arange(480) + 0.5) * n / 480).astype(int) for n in size)
    compared = LAVT.compared(mask)
    assert compared.dtype == bool
    np.testing.assert_array_equal(compared, mask[np.ix_(rows, columns)])


def test_names():
    assert list(PROTOCOLS) == ["ours", "lavt", "cris"]
    assert all(protocol.name == name for name, protocol in PROTOCOLS.items())

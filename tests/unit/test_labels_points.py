"""Points of similarity maps."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F

from ppt.config import PointRecipe
from ppt.labels.points import points_from_map

SURGERY = PointRecipe()
NEAR = PointRecipe(method="near")


def bump(side=12, at=(4.0, 7.0), width=2.0) -> torch.Tensor:
    """A map with one response around `at` (x, y) in cells."""
    ys, xs = np.mgrid[:side, :side] + 0.5
    values = np.exp(-((xs - at[0]) ** 2 + (ys - at[1]) ** 2) / (2 * width**2))
    values = (values - values.min()) / (values.max() - values.min())
    return torch.from_numpy(values).float()


def test_surgery_takes_the_highest_and_the_lowest_cells():
    similarity = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    points, labels = points_from_map(similarity, SURGERY)
    small = F.interpolate(similarity[None, None], (4, 4), mode="bilinear", align_corners=False)[
        0, 0
    ]
    small = (small - small.min()) / (small.max() - small.min())
    count = min(int((small >= 0.8).sum()), 8)
    order = small.flatten().argsort(descending=True)
    for cells, label in ((order[:count], 1), (order[-count:], 0)):
        expected = {((c % 4 + 0.5) / 4, (c // 4 + 0.5) / 4) for c in cells.tolist()}
        assert {tuple(p) for p in points[labels == label].tolist()} == expected


def test_surgery_is_capped_at_half_of_the_cells():
    similarity = torch.ones(8, 8)
    similarity[0, 0] = 0
    points, labels = points_from_map(similarity, SURGERY)
    assert labels.tolist() == [1] * 8 + [0] * 8
    assert len({tuple(p) for p in points.tolist()}) == 16


def test_near_lies_in_and_around_the_response():
    points, labels = points_from_map(bump(), NEAR)
    assert labels.tolist() == [1] * 6 + [0] * 4
    distance = np.hypot(*(points * 12 - (4, 7)).T)
    assert (distance[labels == 1] < 2).all() and distance[0] < 0.6  # the peak comes first
    assert (distance[labels == 0] > 2).all() and (distance[labels == 0] < 5).all()
    spread = np.hypot(*(points[1:6, None] - points[None, 1:6]).T) + np.eye(5)
    assert spread.min() > 0.02  # not all on one spot


def test_near_without_negatives():
    recipe = PointRecipe(method="near", num_positive=4, num_negative=0)
    points, labels = points_from_map(bump(), recipe)
    assert labels.tolist() == [1] * 4 and points.shape == (4, 2)


def test_near_a_peak_of_one_cell():
    similarity = torch.zeros(6, 6)
    similarity[0, 5] = 1
    points, labels = points_from_map(similarity, NEAR)
    assert labels[0] == 1 and points[0, 0] > 0.8 and points[0, 1] < 0.2


@given(
    st.sampled_from([2, 3, 7, 12, 14]).flatmap(
        lambda side: arrays(np.float32, (side, side), elements=st.floats(0, 1, width=32))
    ),
    st.sampled_from([SURGERY, NEAR, PointRecipe(method="near", num_positive=1, num_negative=9)]),
)
@settings(max_examples=100, deadline=None)
def test_any_map_gives_points_inside_the_picture(values, recipe):
    points, labels = points_from_map(torch.from_numpy(values), recipe)
    assert points.shape == (len(labels), 2) and points.dtype == np.float32
    assert ((points > 0) & (points < 1)).all()
    assert labels[0] == 1 and set(labels.tolist()) <= {0, 1}
    again = points_from_map(torch.from_numpy(values), recipe)
    np.testing.assert_array_equal(points, again[0])

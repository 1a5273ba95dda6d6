"""Evidence for a mask, and the calibration that makes a score of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit

from ppt.models.confidence import Calibration, fit_calibration, gather_evidence, sample_masks

TALL = torch.tensor([[0.5, 1.0]])  # a picture that fills the left half of the padded square


def square_logits() -> torch.Tensor:
    """A mask of 2 x 2 pixels in 4 x 4; of these one is certain and so is the rest of the square."""
    logits = torch.full((1, 4, 4), -5.0)
    logits[0, 1:3, 0:2] = 0.5
    logits[0, 1, 0] = 5.0
    logits[0, 3, 0] = -0.5
    return logits


def evidence(**changed: torch.Tensor) -> torch.Tensor:
    given = {
        "logits": square_logits(),
        "valid": torch.ones(1, 4, 4, dtype=torch.bool),
        "earlier_points": torch.tensor([[[[0.1, 0.3], [0.9, 0.9]]], [[[0.4, 0.7], [0.2, 0.4]]]]),
        "extent": torch.ones(1, 2),
        "similarity": torch.arange(16.0)[None],
        **changed,
    }
    return gather_evidence(**given)


def test_the_figures_worked_by_hand() -> None:
    agreement, stability, similarity = evidence()[0].tolist()
    assert agreement == 3 / 4  # (0.9, 0.9) alone is off the mask
    assert stability == pytest.approx(1 / 5)  # one pixel above 1, five above -1
    assert similarity == pytest.approx(np.mean([4, 5, 8, 9]))


def test_points_and_similarity_are_in_the_frame_of_the_picture() -> None:
    """The same mask is the right part of a picture that fills the left half of the square."""
    logits = torch.full((1, 4, 4), -5.0)
    logits[0, :, 1] = 5.0
    found = evidence(
        logits=logits,
        extent=TALL,
        earlier_points=torch.tensor([[[[0.3, 0.5], [0.8, 0.5], [0.6, 0.1]]]]),
        similarity=torch.tensor([[1.0, 3.0, 1.0, 3.0]]),
    )[0]
    assert found[0] == pytest.approx(2 / 3)
    assert found[2] == pytest.approx(3)


def test_the_padding_does_not_count() -> None:
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, :, 1:] = False
    assert evidence(valid=valid)[0, 2] == pytest.approx(np.mean([4, 8]))


def test_one_level_agrees_with_itself_and_an_empty_mask_with_nothing() -> None:
    assert evidence(earlier_points=torch.empty(0, 1, 2, 2))[0, 0] == 1
    assert evidence(logits=torch.full((1, 4, 4), -9.0))[0].tolist() == [0, 0, 0]


def test_masks_are_sampled_at_the_nearest_pixel() -> None:
    masks = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    points = torch.tensor([[[0.2, 0.1], [0.9, 0.1], [0.2, 0.6], [0.9, 0.9]]])
    assert sample_masks(masks, points, torch.ones(1, 2)).tolist() == [[1, 2, 3, 4]]
    assert sample_masks(masks, points, TALL).tolist() == [[1, 1, 3, 3]]


def test_the_calibration_that_made_the_answers_is_found() -> None:
    rng = np.random.default_rng(0)
    figures = rng.normal([0.8, 0.9, 0.2], [0.2, 0.1, 0.05], (20_000, 3))
    true = Calibration((4.0, 4.0, 16.0), -9.0)  # 0.8 times each proportion, by the spread
    right = rng.random(len(figures)) < true.probability(figures)
    found = fit_calibration(figures, right, np.ones(len(figures)))
    assert found.probability(figures) == pytest.approx(true.probability(figures), abs=0.03)
    assert found.weights == pytest.approx(true.weights, rel=0.1)
    assert true.probability(np.array([[0.5, 1.0, 0.1]])) == pytest.approx(expit(-1.4))


def test_a_weight_counts_like_that_many_masks() -> None:
    figures = np.array([[0.0, 1, 0], [1, 1, 0], [1, 1, 1], [0, 1, 1]])
    right_again = np.array([False, True, False, True, False])
    again = np.concatenate([figures[:3], figures[2:]])
    twice = fit_calibration(again[[0, 1, 2, 3, 3, 4]], right_again[[0, 1, 2, 3, 3, 4]], np.ones(6))
    weighted = fit_calibration(again, right_again, np.array([1.0, 1, 1, 2, 1]))
    assert weighted.probability(figures) == pytest.approx(twice.probability(figures), abs=0.02)
    first, *_, last = weighted.probability(figures[[0, 1, 2]])
    assert first < 0.5 < last
    assert weighted.weights[1] == 0  # of a figure that is the same for all


def test_evidence_that_misleads_counts_nothing() -> None:
    figures = np.array([[0.0, 0.1, 0.2], [1.0, 0.9, 0.8]])
    found = fit_calibration(figures, np.array([True, False]), np.ones(2))
    assert found.probability(figures) == pytest.approx([0.5, 0.5])


def test_without_any_mask_nothing_is_known() -> None:
    nothing = fit_calibration(np.empty((0, 3)), np.empty(0, bool), np.empty(0))
    assert nothing.probability(np.array([[0.1, 0.9, 0.3]])).tolist() == [0.5]

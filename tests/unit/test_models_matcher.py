"""HungarianMatcher against trying every permutation."""

from itertools import permutations

import numpy as np
import pytest
import torch
from common import targets_of
from scipy.optimize import linear_sum_assignment

from ppt.training.matcher import HungarianMatcher, match_pairs, reduced

COSTS = {"cost_points": 5.0, "cost_point_labels": 1.0, "cost_referent": 2.0}


def random_case(num_targets, num_queries, num_points, seed):
    rng = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=rng)  # noqa: E731
    outputs = {
        "pred_points": rand(len(num_targets), num_queries, num_points, 2),
        "pred_point_logits": rand(len(num_targets), num_queries, num_points) * 6 - 3,
        "pred_referent_logits": rand(len(num_targets), num_queries) * 6 - 3,
    }
    parts = [
        (
            (rand(e, 8, 8) > 0.5).float(),
            rand(e, num_points, 2),
            (rand(e, num_points) > 0.5).float(),
            (torch.arange(e) == 0).float(),
        )
        for e in num_targets
    ]
    return outputs, targets_of(*parts)


def point_cost(outputs, targets, b, k, g, order):
    distance = (outputs["pred_points"][b, k] - targets.points[g, order]).abs().sum(-1)
    labels = outputs["pred_point_logits"][b, k].sigmoid()
    mislabel = (labels - targets.point_labels[g, order]).abs()
    return (5 * distance + mislabel).mean().item()


def pair_cost(outputs, targets, b, k, g):
    """Cost of query k for target g with the best order of points, and that order."""
    orders = [list(p) for p in permutations(range(targets.points.shape[1]))]
    best = min(orders, key=lambda order: point_cost(outputs, targets, b, k, g, order))
    score = outputs["pred_referent_logits"][b, k].sigmoid() - targets.is_referent[g]
    return point_cost(outputs, targets, b, k, g, best) + 2 * score.abs().item(), best


@pytest.mark.parametrize("seed", range(3))
def test_equals_brute_force(seed):
    num_queries = 4
    outputs, targets = random_case([2, 0, 1, 3], num_queries, 3, seed)
    match = HungarianMatcher(**COSTS)(outputs, targets)
    rows = list(zip(*(part.tolist() for part in match), strict=True))
    assert [(targets.expression[g].item(), k) for k, g, _ in rows] == sorted(
        (targets.expression[g].item(), k) for k, g, _ in rows
    )
    for b in range(4):
        of_expression = (targets.expression == b).nonzero()[:, 0].tolist()
        costs = {
            (k, g): pair_cost(outputs, targets, b, k, g)
            for k in range(num_queries)
            for g in of_expression
        }
        best = min(
            sum(costs[k, g][0] for g, k in zip(of_expression, chosen, strict=True))
            for chosen in permutations(range(num_queries), len(of_expression))
        )
        found = {(k, g): order for k, g, order in rows if g in of_expression}
        assert sorted(g for _, g in found) == of_expression
        assert sum(costs[pair][0] for pair in found) == pytest.approx(best, abs=1e-5)
        for (k, g), order in found.items():  # several orders may cost the same
            least = point_cost(outputs, targets, b, k, g, costs[k, g][1])
            assert point_cost(outputs, targets, b, k, g, order) == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("near", [1.0, 0.05])
def test_what_is_left_out_of_the_search_cannot_win(near):
    """The same pairs as from the costs of all pairs, and orders of the same cost."""
    rng = np.random.default_rng(0)
    expression = np.repeat(np.arange(40), rng.integers(0, 5, 40))
    points = rng.random((40, 10, 8, 2))[expression]
    targets = np.take_along_axis(points, rng.integers(0, 10, (len(points), 1, 1, 1)), 1)[:, 0]
    targets = rng.permuted(targets, axis=1) + near * rng.normal(size=targets.shape)
    pair = np.abs(points[:, :, :, None] - targets[:, None, None]).sum(-1)
    rest = rng.random(pair.shape[:2])
    of_points = np.array([[of[linear_sum_assignment(of)].mean() for of in row] for row in pair])
    cost = rest + of_points
    expected = []
    for b in range(40):
        of_b = np.flatnonzero(expression == b)
        chosen, queries = linear_sum_assignment(cost[of_b])
        expected += sorted(zip(queries, of_b[chosen], strict=True))
    excess, bound = (part.numpy() for part in reduced(torch.from_numpy(pair)))
    assert (excess >= 0).all()
    found = match_pairs(excess, rest + bound, expression)
    assert found[:, :2].tolist() == np.array(expected).tolist()
    for k, g, *order in found:
        assert sorted(order) == list(range(8))
        assert pair[g, k, range(8), order].mean() == pytest.approx(of_points[g, k], abs=1e-12)


def test_reduced_matrices_differ_from_the_costs_by_the_bound_alone():
    pair = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    excess, bound = reduced(pair)
    assert excess.amin(-1).abs().max() == 0 == excess.amin((-2, -1)).abs().max()
    for order in permutations(range(5)):
        costs = pair[:, :, range(5), order].mean(-1)
        assert torch.allclose(excess[:, :, range(5), order].mean(-1) + bound, costs, atol=1e-12)


def test_more_targets_than_queries():
    outputs, targets = random_case([5], 2, 3, seed=0)
    match = HungarianMatcher(**COSTS)(outputs, targets)
    assert match.queries.tolist() == [0, 1]
    assert len(set(match.targets.tolist())) == 2


def test_a_batch_without_targets():
    outputs, targets = random_case([0, 0], 2, 3, seed=0)
    match = HungarianMatcher(**COSTS)(outputs, targets)
    assert match.queries.shape == (0,) and match.targets.shape == (0,)
    assert match.point_order.shape == (0, 3)


def test_mask_cost_alone_picks_the_query_with_the_mask():
    outputs, targets = random_case([2], 4, 3, seed=1)
    masks = torch.zeros(2, 8, 8)
    masks[0, :4], masks[1, 4:] = 1, 1
    targets.masks = masks
    logits = torch.full((1, 4, 8, 8), -9.0)
    logits[0, 3, :4] = 9  # query 3 has target 0, query 1 has target 1
    logits[0, 1, 4:] = 9
    matcher = HungarianMatcher(cost_points=0, cost_point_labels=0, cost_referent=0, cost_mask=1)
    match = matcher(outputs, targets, logits)
    assert match.queries.tolist() == [1, 3]
    assert match.targets.tolist() == [1, 0]

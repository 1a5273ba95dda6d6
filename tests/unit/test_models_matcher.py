"""HungarianMatcher against trying every permutation."""

from itertools import permutations

import pytest
import torch

from ppt.batches.batch import Target
from ppt.training.matcher import HungarianMatcher

COSTS = {"cost_points": 5.0, "cost_point_labels": 1.0, "cost_referent": 2.0}


def random_case(num_targets, num_queries, num_points, seed):
    rng = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=rng)  # noqa: E731
    outputs = {
        "pred_points": rand(len(num_targets), num_queries, num_points, 2),
        "pred_point_logits": rand(len(num_targets), num_queries, num_points) * 6 - 3,
        "pred_referent_logits": rand(len(num_targets), num_queries) * 6 - 3,
    }
    targets = [
        Target(
            masks=(rand(e, 8, 8) > 0.5).float(),
            points=rand(e, num_points, 2),
            point_labels=(rand(e, num_points) > 0.5).float(),
            is_referent=(torch.arange(e) == 0).float(),
        )
        for e in num_targets
    ]
    return outputs, targets


def point_cost(outputs, target, b, k, e, order):
    distance = (outputs["pred_points"][b, k] - target.points[e, order]).abs().sum(-1)
    labels = outputs["pred_point_logits"][b, k].sigmoid()
    mislabel = (labels - target.point_labels[e, order]).abs()
    return (5 * distance + mislabel).mean().item()


def pair_cost(outputs, target, b, k, e):
    """Cost of query k for target e with the best order of points, and that order."""
    orders = [list(p) for p in permutations(range(target.points.shape[1]))]
    best = min(orders, key=lambda order: point_cost(outputs, target, b, k, e, order))
    score = outputs["pred_referent_logits"][b, k].sigmoid() - target.is_referent[e]
    return point_cost(outputs, target, b, k, e, best) + 2 * score.abs().item(), best


@pytest.mark.parametrize("seed", range(3))
def test_equals_brute_force(seed):
    num_queries = 4
    outputs, targets = random_case([2, 0, 1, 3], num_queries, 3, seed)
    matches = HungarianMatcher(**COSTS)(outputs, targets)
    for b, (target, match) in enumerate(zip(targets, matches, strict=True)):
        num_targets = len(target.is_referent)
        costs = {
            (k, e): pair_cost(outputs, target, b, k, e)
            for k in range(num_queries)
            for e in range(num_targets)
        }
        best = min(
            sum(costs[k, e][0] for e, k in enumerate(chosen))
            for chosen in permutations(range(num_queries), num_targets)
        )
        pairs = list(zip(match.queries.tolist(), match.targets.tolist(), strict=True))
        assert sorted(e for _, e in pairs) == list(range(num_targets))
        assert sum(costs[pair][0] for pair in pairs) == pytest.approx(best, abs=1e-5)
        for pair, order in zip(pairs, match.point_order.tolist(), strict=True):
            assert order == costs[pair][1]


def test_more_targets_than_queries():
    outputs, targets = random_case([5], 2, 3, seed=0)
    (match,) = HungarianMatcher(**COSTS)(outputs, targets)
    assert match.queries.tolist() == [0, 1]
    assert len(set(match.targets.tolist())) == 2


def test_a_batch_without_targets():
    outputs, targets = random_case([0, 0], 2, 3, seed=0)
    for match in HungarianMatcher(**COSTS)(outputs, targets):
        assert match.queries.shape == (0,)
        assert match.point_order.shape == (0, 3)


def test_mask_cost_alone_picks_the_query_with_the_mask():
    outputs, targets = random_case([2], 4, 3, seed=1)
    masks = torch.zeros(2, 8, 8)
    masks[0, :4], masks[1, 4:] = 1, 1
    targets[0].masks = masks
    logits = torch.full((1, 4, 8, 8), -9.0)
    logits[0, 3, :4] = 9  # query 3 has target 0, query 1 has target 1
    logits[0, 1, 4:] = 9
    matcher = HungarianMatcher(cost_points=0, cost_point_labels=0, cost_referent=0, cost_mask=1)
    (match,) = matcher(outputs, targets, logits)
    assert match.queries.tolist() == [1, 3]
    assert match.targets.tolist() == [1, 0]

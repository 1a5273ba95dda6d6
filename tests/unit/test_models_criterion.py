"""SetCriterion against numbers worked by hand, and what it does to scores."""

import math

import pytest
import torch
import torch.distributed as dist
from common import targets_of

from ppt.batches.batch import Batch
from ppt.config import LossWeights, MatchCost
from ppt.training.criterion import SetCriterion

LOW_RES = 4


class DrawnMasks(torch.nn.Module):
    """Stands where PointPrompting stands; its masks are given, not decoded."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits  # [B, K, H4, W4]
        self.decoded = []
        self.segmenter = self

    def decode(self, outputs, batch, expression_index, query_index):
        self.decoded.append(list(zip(expression_index.tolist(), query_index.tolist(), strict=True)))
        return self.logits[expression_index, query_index]

    def valid_mask(self, sizes):
        """The upper half of each square is picture."""
        valid = torch.zeros(len(sizes), LOW_RES, LOW_RES, dtype=torch.bool)
        valid[:, : LOW_RES // 2] = True
        return valid


def make_batch(targets):
    """A batch with an expression for each (masks, points, point_labels, is_referent)."""
    count = len(targets)
    return Batch(
        pictures=["a"],
        sizes=torch.tensor([[2, 4]]),
        visual_features=[],
        segmenter_features={},
        picture_index=torch.zeros(count, dtype=torch.long),
        expression_ids=[str(i) for i in range(count)],
        texts=[""] * count,
        word_features=torch.zeros(count, 1, 1),
        word_mask=torch.ones(count, 1, dtype=torch.bool),
        targets=targets_of(*targets),
    )


def one_target(mask_rows=1):
    mask = torch.zeros(1, LOW_RES, LOW_RES)
    mask[:, :mask_rows] = 1
    points = torch.tensor([[[0.2, 0.3], [0.8, 0.5]]])
    return mask, points, torch.tensor([[1.0, 0.0]]), torch.tensor([1.0])


@pytest.fixture
def outputs():
    """Two expressions, two queries, two points; query 1 is the near one, its points swapped."""
    return {
        "pred_points": torch.tensor([[[[0.9, 0.9], [0.9, 0.1]], [[0.7, 0.6], [0.2, 0.4]]]] * 2),
        "pred_point_logits": torch.tensor([[[0.0, 0.0], [-1.0, 2.0]]] * 2),
        "pred_referent_logits": torch.tensor([[-3.0, 1.0]] * 2),
    }


def test_losses_worked_by_hand(outputs):
    logits = torch.zeros(2, 2, LOW_RES, LOW_RES)
    logits[:, :, LOW_RES // 2 :] = 50.0  # below the picture: must not count
    model = DrawnMasks(logits)
    none = tuple(torch.zeros(0, *s) for s in [(4, 4), (2, 2), (2,), ()])
    batch = make_batch([one_target(), none])
    losses = SetCriterion(MatchCost(), LossWeights(unmatched=0.1))(model, outputs, batch)

    assert model.decoded == [[(0, 1)]]  # only the matched query
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    assert losses["loss_points"].item() == pytest.approx((0.2 + 0.1) / 2)
    assert losses["loss_point_labels"].item() == pytest.approx((softplus(-2) + softplus(-1)) / 2)
    # The matched query wants 1; the other one and those of the expression without labels want 0.
    unmatched = softplus(-3) + softplus(-3) + softplus(1)
    assert losses["loss_referent"].item() == pytest.approx(softplus(-1) + 0.1 * unmatched)
    assert losses["loss_mask"].item() == pytest.approx(math.log(2))
    # Eight pixels at one half, four of them wanted: 1 - (2 * 2 + 1) / (4 + 4 + 1).
    assert losses["loss_dice"].item() == pytest.approx(1 - 5 / 9)


def test_a_point_is_labelled_by_what_is_under_it(outputs):
    """Both points of the matched query lie on the larger mask, whatever the target points say."""
    model, batch = DrawnMasks(torch.zeros(1, 2, LOW_RES, LOW_RES)), make_batch([one_target(2)])
    one = {name: value[:1].requires_grad_() for name, value in outputs.items()}
    losses = SetCriterion(MatchCost(), LossWeights())(model, one, batch)
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    assert losses["loss_point_labels"].item() == pytest.approx((softplus(1) + softplus(-2)) / 2)
    losses["loss_point_labels"].backward()
    assert one["pred_points"].grad is None  # the label does not move the point


def test_losses_are_means_over_targets(outputs):
    logits = torch.zeros(2, 2, LOW_RES, LOW_RES)
    criterion = SetCriterion(MatchCost(), LossWeights(unmatched=0.0))
    two = criterion(DrawnMasks(logits), outputs, make_batch([one_target(), one_target()]))
    half = {name: value[:1] for name, value in outputs.items()}
    one = criterion(DrawnMasks(logits[:1]), half, make_batch([one_target()]))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def test_earlier_stages_are_supervised_alike(outputs):
    """Two earlier stages that say what the last one says: twice its point and referent losses."""
    model = DrawnMasks(torch.zeros(2, 2, LOW_RES, LOW_RES))
    batch = make_batch([one_target(), one_target()])
    plain = SetCriterion(MatchCost(), LossWeights())(model, outputs, batch)
    deep = outputs | {f"aux_{name}": torch.stack([value] * 2) for name, value in outputs.items()}
    criterion = SetCriterion(MatchCost(), LossWeights(aux=0.5))
    losses = criterion(model, deep, batch)
    again = ("loss_points", "loss_point_labels", "loss_referent")
    expected = 2 * sum(criterion.weights[name] * plain[name] for name in again)
    torch.testing.assert_close(losses.pop("loss_aux"), expected)
    assert criterion.weights["loss_aux"] == 0.5
    assert losses == plain
    assert "loss_aux" not in plain


def test_a_cap_on_mask_prompts_keeps_the_scale(outputs):
    model = DrawnMasks(torch.zeros(2, 2, LOW_RES, LOW_RES))
    batch = make_batch([one_target(), one_target()])
    plain = SetCriterion(MatchCost(), LossWeights())(model, outputs, batch)
    capped = SetCriterion(MatchCost(), LossWeights(), max_mask_prompts=1)(model, outputs, batch)
    assert [len(decoded) for decoded in model.decoded] == [2, 1]
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(capped[name], plain[name])


def test_mask_cost_decides_the_match(outputs):
    logits = torch.full((1, 2, LOW_RES, LOW_RES), -9.0)
    logits[0, 0, 0] = 9.0  # query 0 has the mask, query 1 the points
    outputs = {name: value[:1] for name, value in outputs.items()}
    model = DrawnMasks(logits)
    SetCriterion(MatchCost(mask=100), LossWeights())(model, outputs, make_batch([one_target()]))
    assert model.decoded == [[(0, 0), (0, 1)], [(0, 0)]]


def test_a_batch_without_pseudo_labels_still_has_a_gradient(outputs):
    for value in outputs.values():
        value.requires_grad_()
    none = tuple(torch.zeros(0, *s) for s in [(4, 4), (2, 2), (2,), ()])
    model = DrawnMasks(torch.zeros(2, 2, LOW_RES, LOW_RES))
    losses = SetCriterion(MatchCost(), LossWeights())(model, outputs, make_batch([none, none]))
    sum(losses.values()).backward()
    assert all(value.grad is not None for value in outputs.values())
    assert losses["loss_referent"] > 0


def test_scores_do_not_collapse_while_no_referent_is_known():
    """H_ref before the first Select: every score target is 0. Mixed with samples whose referent is
    known, the scores must go on telling referent from context."""
    torch.manual_seed(0)
    referent = torch.nn.Parameter(torch.randn(2, 3))  # [known or not, K] score logits
    points = torch.rand(1, 3, 2, 2)
    optimizer = torch.optim.Adam([referent], lr=0.05)
    criterion = SetCriterion(MatchCost(), LossWeights())
    known = torch.ones(2, 4, 4), points[0, :2], torch.ones(2, 2), torch.tensor([1.0, 0.0])
    unknown = *known[:3], torch.zeros(2)
    model = DrawnMasks(torch.zeros(2, 3, LOW_RES, LOW_RES))
    shared = torch.nn.Parameter(torch.zeros(3))  # what both kinds of sample have in common
    optimizer.add_param_group({"params": [shared]})
    for _ in range(200):
        outputs = {
            "pred_points": points.expand(2, -1, -1, -1),
            "pred_point_logits": torch.ones(2, 3, 2),
            "pred_referent_logits": referent + shared,
        }
        loss = criterion(model, outputs, make_batch([known, unknown]))["loss_referent"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = (referent + shared).sigmoid()
    assert scores[0, 0] > 0.9 and scores[0, 1:].max() < 0.1
    assert scores[1].max() < 0.5 and torch.isfinite(loss)


def test_targets_are_counted_over_all_workers(outputs, monkeypatch):
    """2 targets here and 4 at the other of two workers: each divides by 3."""
    model = DrawnMasks(torch.zeros(2, 2, LOW_RES, LOW_RES))
    batch = make_batch([one_target(), one_target()])
    alone = SetCriterion(MatchCost(), LossWeights())(model, outputs, batch)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.add_(4))
    together = SetCriterion(MatchCost(), LossWeights())(model, outputs, batch)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value * 2 / 3)


def test_losses_without_weight_are_not_computed(outputs):
    model = DrawnMasks(torch.zeros(2, 2, LOW_RES, LOW_RES))
    batch = make_batch([one_target(), one_target()])
    plain = SetCriterion(MatchCost(), LossWeights())(model, outputs, batch)
    model.decoded.clear()
    weights = LossWeights(mask=0, dice=0, point_labels=0, aux=1)
    criterion = SetCriterion(MatchCost(), weights)
    deep = outputs | {f"aux_{name}": torch.stack([value]) for name, value in outputs.items()}
    losses = criterion(model, deep, batch)
    assert not model.decoded
    assert losses.keys() == {"loss_points", "loss_referent", "loss_aux"}
    torch.testing.assert_close(losses["loss_points"], plain["loss_points"])
    aux = weights.points * plain["loss_points"] + weights.referent * plain["loss_referent"]
    torch.testing.assert_close(losses["loss_aux"], aux)
    torch.testing.assert_close(criterion.total(losses, deep), 2 * aux)


def test_every_output_has_a_gradient_whatever_the_weights(outputs):
    """DDP waits for it, also where no loss has a weight."""
    model, batch = DrawnMasks(torch.zeros(2, 2, LOW_RES, LOW_RES)), make_batch([one_target()] * 2)
    for weights, moved in (
        (LossWeights(point_labels=0), {"pred_points", "pred_referent_logits"}),
        (LossWeights(mask=0, dice=0, points=0, point_labels=0, referent=0), set()),
    ):
        leaves = {name: value.clone().requires_grad_() for name, value in outputs.items()}
        criterion = SetCriterion(MatchCost(), weights)
        criterion.total(criterion(model, leaves, batch), leaves).backward()
        assert {name for name, leaf in leaves.items() if leaf.grad.any()} == moved

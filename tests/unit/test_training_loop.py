"""The training and evaluation loops on a whole, tiny f_theta with a real SAM decoder."""

import numpy as np
import pytest
import torch
from common import targets_of
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from ppt.batches.batch import Batch
from ppt.config import LossWeights, MatchCost, Training
from ppt.models.point_generator import NO_POINT, PointGenerator
from ppt.models.point_prompting import PointPrompting
from ppt.models.prediction import predict_batches
from ppt.models.sam import SamSegmenter
from ppt.training import loop
from ppt.training.criterion import SetCriterion, build_criterion
from ppt.training.loop import train_one_epoch

SIDE, DIM, GRID, VISUAL, TEXT, NUM_POINTS = 32, 16, 4, 16, 12, 4
SIZES = torch.tensor([[32, 32], [20, 40]])


def make_model(seed=0):
    torch.manual_seed(seed)
    sam = Sam(
        ImageEncoderViT(
            img_size=SIDE, patch_size=8, embed_dim=8, depth=1, num_heads=2, out_chans=DIM
        ),
        PromptEncoder(DIM, (4, 4), (SIDE, SIDE), mask_in_chans=8),
        MaskDecoder(
            transformer_dim=DIM,
            transformer=TwoWayTransformer(depth=1, embedding_dim=DIM, mlp_dim=16, num_heads=2),
            iou_head_hidden_dim=8,
        ),
    )
    generator = PointGenerator(
        VISUAL,
        TEXT,
        2,
        num_queries=3,
        num_points=NUM_POINTS,
        hidden_size=32,
        num_heads=4,
        ffn_size=32,
        fusion_size=16,
        head_size=32,
        positive_above=1.9,
        negative_below=-3.0,
    )
    return PointPrompting(generator, SamSegmenter(sam))


def make_batch(seed=0, with_targets=True):
    """Three expressions on two pictures; each picture's left or right half is wanted."""
    rng = torch.Generator().manual_seed(seed)
    targets = []
    for half in ("left", "right", "left"):
        mask = torch.zeros(1, 16, 16)
        columns = slice(0, 8) if half == "left" else slice(8, 16)
        mask[:, :8, columns] = 1
        points = torch.rand(1, NUM_POINTS, 2, generator=rng) * 0.4
        points[..., 0] += 0.05 if half == "left" else 0.55
        ones = torch.ones(1, NUM_POINTS)
        targets.append((mask, points, ones, torch.tensor([1.0])))
    return Batch(
        pictures=["a", "b"],
        sizes=SIZES,
        visual_features=[torch.randn(2, GRID**2, VISUAL, generator=rng) for _ in range(2)],
        segmenter_features={"image_embeddings": torch.randn(2, DIM, 4, 4, generator=rng)},
        picture_index=torch.tensor([0, 0, 1]),
        expression_ids=["a0", "a1", "b0"],
        texts=["left", "right", "the left half"],
        word_features=torch.randn(3, 5, TEXT, generator=rng),
        word_mask=torch.arange(5) < torch.tensor([3, 3, 5])[:, None],
        targets=targets_of(*targets) if with_targets else None,
    )


def train(model, steps, seed=0):
    optimizer = torch.optim.Adam(model.generator.parameters(), lr=4e-3)
    criterion = build_criterion(Training())
    history = []

    def record(module, arguments, losses):
        values = {name: loss.item() for name, loss in losses.items()}
        total = sum(module.weights[name] * value for name, value in values.items())
        history.append({"loss": total, **values})

    criterion.register_forward_hook(record)
    means = train_one_epoch(
        model,
        criterion,
        (make_batch() for _ in range(steps)),
        optimizer,
        device="cpu",
        max_norm=1.0,
    )
    return means, history


@pytest.fixture(scope="module")
def trained():
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    means, history = train(model, 80)
    return model, before, means, history


def test_overfits_one_batch(trained):
    model, _, _, history = trained
    first, last = history[0], history[-1]
    assert last["loss_points"] < 0.15 * first["loss_points"]
    assert last["loss_referent"] < 0.2 * first["loss_referent"]
    found = model.predict(make_batch(with_targets=False))
    wanted_right = found.points[:, :, 0].mean(1) > 0.5
    assert wanted_right.tolist() == [False, True, False]


def test_reports_the_means_of_all_iterations(trained):
    _, _, means, history = trained
    assert len(history) == 80
    criterion = build_criterion(Training())
    names = {"loss", *criterion.mask_losses, *criterion.point_losses}
    assert set(means) == {*names, "gradient_norm"}
    for name in names:
        assert means[name] == pytest.approx(np.mean([losses[name] for losses in history]))


def test_the_norm_of_the_gradient_is_that_before_it_is_clipped():
    stepped = []

    def record(optimizer, *_):
        gradients = [p.grad.flatten() for p in optimizer.param_groups[0]["params"]]
        stepped.append(torch.cat(gradients).norm().item())

    def norm(max_norm):
        model = make_model()
        optimizer = torch.optim.SGD(model.generator.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(record)
        batches = [make_batch(seed) for seed in range(3)]
        given = {"device": "cpu", "max_norm": max_norm}
        means = train_one_epoch(model, build_criterion(Training()), batches, optimizer, **given)
        return means["gradient_norm"]

    free = norm(1e6)
    assert free == pytest.approx(np.mean(stepped), rel=1e-4)
    assert norm(1e-3) == free
    assert stepped[3:] == pytest.approx([1e-3] * 3, rel=1e-2)


def test_only_the_generator_changes(trained):
    model, before, _, _ = trained
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("segmenter."), name


def test_two_runs_are_equal():
    runs = [make_model(), make_model()]
    losses = [train(model, 3)[0] for model in runs]
    assert losses[0] == losses[1]
    for a, b in zip(*(model.parameters() for model in runs), strict=True):
        assert torch.equal(a, b)


def test_mask_losses_alone_move_the_points():
    model = make_model()
    batch = make_batch()
    weights = LossWeights(points=0, point_labels=0, referent=0)
    criterion = SetCriterion(MatchCost(), weights)
    losses = criterion(model, model(batch), batch)
    sum(criterion.weights[name] * value for name, value in losses.items()).backward()
    assert model.generator.point_head.offset_head[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("where", ["word_features", "segmenter_features"])
def test_what_is_not_finite_ends_the_epoch(where):
    model, bad = make_model(), make_batch()
    spoilt = getattr(bad, where)
    (spoilt["image_embeddings"] if isinstance(spoilt, dict) else spoilt)[:] = float("nan")
    optimizer = torch.optim.Adam(model.generator.parameters())
    criterion = build_criterion(Training())
    with pytest.raises(FloatingPointError, match="not finite"):
        train_one_epoch(model, criterion, [bad], optimizer, device="cpu", max_norm=1.0)


def test_a_gradient_that_is_not_finite_ends_the_epoch():
    model = make_model()
    model.generator.point_head.offset_head[-1].weight.register_hook(lambda grad: grad / 0)
    optimizer = torch.optim.Adam(model.generator.parameters())
    given = {"device": "cpu", "max_norm": 1.0}
    with pytest.raises(FloatingPointError, match="iteration 1: .*'gradient_norm': (inf|nan)"):
        train_one_epoch(model, build_criterion(Training()), [make_batch()], optimizer, **given)


def test_losses_are_read_now_and_then_and_at_the_end(monkeypatch):
    monkeypatch.setattr(loop, "READ_EVERY", 3)
    means = loop._Means()
    values = np.random.default_rng(0).random((8, 2)).astype(np.float32)
    for loss, part in values:
        means.add({"loss": torch.tensor(loss), "part": torch.tensor(part)})
    assert means.read() == pytest.approx(dict(zip(["loss", "part"], values.mean(0), strict=True)))
    means.add({"loss": torch.tensor(float("inf")), "part": torch.tensor(1.0)})
    with pytest.raises(FloatingPointError, match=r"iteration 9: .*'loss': inf, 'part': 1.0"):
        means.read()


def test_evaluate_gives_a_prediction_an_expression(trained):
    model = trained[0]
    found = list(predict_batches(model, [make_batch(with_targets=False)]))
    assert [p.expression_id for p in found] == ["a0", "a1", "b0"]
    assert [p.picture for p in found] == ["a", "a", "b"]
    assert [p.mask.shape for p in found] == [(32, 32), (32, 32), (20, 40)]
    for prediction in found:
        assert prediction.mask.dtype == bool
        assert prediction.points.shape == (len(prediction.point_labels), 2)
        assert len(prediction.points) <= NUM_POINTS
        assert prediction.points.min() >= 0 and prediction.points.max() <= 1
        assert set(prediction.point_labels.tolist()) <= {0, 1}
        assert prediction.point_labels.max() == 1
        assert 0 <= prediction.score <= 1


def test_predict_takes_the_query_with_the_highest_score(trained):
    model, batch = trained[0], make_batch(with_targets=False)
    found, outputs = model.predict(batch), model(batch)
    best = outputs["pred_referent_logits"].argmax(1)
    rows = torch.arange(3)
    points, logits = (outputs[f"pred_{n}"][rows, best] for n in ("points", "point_logits"))
    for mine, theirs, order in zip(
        found.points, points, logits.argsort(descending=True), strict=True
    ):
        torch.testing.assert_close(mine, theirs[order])  # the surest point first
    torch.testing.assert_close(found.attention, outputs["attention"][rows, best])
    assert found.masks_without is None


def test_negative_points_can_be_left_out():
    """The same masks as from the segmenter with the positive points alone, prompt by prompt."""
    model, batch = make_model().eval(), make_batch(with_targets=False)
    labels = model.generator.point_head.label_head[-1]
    labels.bias.data -= model(batch)["pred_point_logits"].median()  # half of them are negative,
    labels.weight.data *= 1e4  # and it is sure of each
    labels.bias.data *= 1e4
    found = model.predict(batch, without_negatives=True)
    assert (found.point_labels == 0).any()
    for i, mask in enumerate(found.masks_without):
        positive = found.point_labels[i] == 1
        logits, _ = model.segmenter.decode(
            batch.segmenter_features,
            batch.picture_index[[i]],
            torch.cat([found.points[i][positive], torch.zeros(int((~positive).sum()), 2)])[None],
            torch.tensor([[1] * int(positive.sum()) + [-1] * int((~positive).sum())]),
            batch.sizes,
            multimask_output=False,
        )
        size = batch.sizes[batch.picture_index[[i]]]
        (expected,) = model.segmenter.finish_batch(logits[:, 0], size)
        assert (mask == expected).float().mean() > 0.999


def test_a_positive_point_is_forced():
    logits = torch.tensor([[-3.5, -2.6, -4.0], [3.0, -3.5, 2.0]])
    labels = make_model().generator.prompt_labels(logits)
    assert labels.tolist() == [[0, 1, 0], [1, 0, 1]]


def test_a_point_of_uncertain_label_is_not_prompted():
    generator = make_model().generator
    generator.positive_above, generator.negative_below = 0.5, -1.5
    logits = torch.tensor([[0.51, -1.51, 0.5, -1.5], [-1.4, 0.2, -1.51, 0.1]])
    assert generator.prompt_labels(logits).tolist() == [
        [1, 0, NO_POINT, NO_POINT],
        [NO_POINT, 1, 0, NO_POINT],
    ]


def test_points_that_are_not_prompted_are_not_predicted():
    model, batch = make_model().eval(), make_batch(with_targets=False)
    found = model.predict(batch)
    kept = found.point_labels != NO_POINT
    assert not kept.all()
    for i, prediction in enumerate(predict_batches(model, [batch])):
        assert prediction.point_labels.tolist() == found.point_labels[i][kept[i]].tolist()
        assert np.array_equal(prediction.points, found.points[i][kept[i]].numpy())

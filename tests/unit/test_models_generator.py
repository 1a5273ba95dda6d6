"""The point generator: its size, its shapes, and that padding and other pictures do not matter."""

import pytest
import torch
import torch.nn.functional as F

from ppt.config import PointGeneratorConfig
from ppt.models.build import build_point_generator
from ppt.models.fusion import Attention, FewQueriesAttention
from ppt.models.point_generator import PointGenerator, _bilinear

SIZES = {
    "num_queries": 5,
    "num_points": 4,
    "hidden_size": 32,
    "num_heads": 4,
    "ffn_size": 48,
    "fusion_size": 16,
    "head_size": 24,
    "positive_above": 1.9,
    "negative_below": -3.0,
}
VISUAL, TEXT, STAGES = 24, 20, 3


def make_generator(seed=0):
    torch.manual_seed(seed)
    return PointGenerator(VISUAL, TEXT, STAGES, **SIZES)


def make_inputs(num_pictures=2, num_expressions=3, grid=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    visual = [torch.randn(num_pictures, grid**2, VISUAL, generator=rng) for _ in range(STAGES)]
    words = torch.randn(num_expressions, 7, TEXT, generator=rng)
    mask = torch.arange(7) < torch.tensor([3, 7, 5])[:num_expressions, None]
    return visual, words, mask, torch.tensor([0, 1, 0])[:num_expressions]


def test_has_the_papers_number_of_trainable_parameters():
    generator = build_point_generator(PointGeneratorConfig(), 768, 512, 3)
    count = sum(p.numel() for p in generator.parameters() if p.requires_grad)
    assert round(count / 1e6, 1) == 20.7  # Table 2


def test_shapes_and_ranges():
    outputs = make_generator()(*make_inputs())
    assert outputs["pred_points"].shape == (3, 5, 4, 2)
    assert outputs["pred_point_logits"].shape == (3, 5, 4)
    assert outputs["pred_referent_logits"].shape == (3, 5)
    assert outputs["attention"].shape == (3, 5, 36)
    torch.testing.assert_close(outputs["attention"].sum(-1), torch.ones(3, 5))
    assert (outputs["pred_points"] > 0).all() and (outputs["pred_points"] < 1).all()


@pytest.mark.parametrize(("patch", "place"), [(0, (1 / 12, 1 / 12)), (11, (11 / 12, 3 / 12))])
def test_points_lie_about_where_the_query_looks(patch, place):
    generator = make_generator()
    torch.nn.init.zeros_(generator.point_head.offset_head[-1].weight)
    torch.nn.init.zeros_(generator.point_head.offset_head[-1].bias)
    visual, words, mask, index = make_inputs()
    attention = generator.levels[-1].look_at_picture.attention
    attention.register_forward_hook(
        lambda module, inputs, output: (
            output[0],
            torch.nn.functional.one_hot(torch.tensor(patch), 36).expand_as(output[1]).float(),
        )
    )
    points = generator(visual, words, mask, index)["pred_points"]
    torch.testing.assert_close(points, torch.tensor(place).expand_as(points), atol=0.03, rtol=0)


def test_each_point_looks_for_itself_and_is_labelled_where_it_lies():
    """The heads written out with loops, for one query of one expression."""
    torch.manual_seed(0)
    head = PointGenerator(VISUAL, TEXT, STAGES, **SIZES).point_head
    grid, queries = 5, torch.randn(1, 1, 32)
    visual, looked_at = torch.randn(1, grid**2, VISUAL), torch.rand(1, 1, grid**2).softmax(-1)
    points, logits = head(queries, looked_at, visual)
    centres = [((i % grid + 0.5) / grid, (i // grid + 0.5) / grid) for i in range(grid**2)]
    for m in range(4):
        state = queries[0, 0] + head.points[m]
        scores = visual[0] @ head.look_for(state) * VISUAL**-0.5 + looked_at[0, 0].log()
        weights = scores.softmax(0)
        state = state + head.found(weights @ visual[0])
        place = sum(w * torch.tensor(c) for w, c in zip(weights, centres, strict=True))
        x, y = (place.logit() + head.offset_head(state)).sigmoid()
        torch.testing.assert_close(points[0, 0, m], torch.stack([x, y]))
        column, row = (v.item() * grid - 0.5 for v in (x, y))
        around = torch.zeros(VISUAL)
        for i, (cx, cy) in enumerate(centres):
            apart = abs(cx * grid - 0.5 - column), abs(cy * grid - 0.5 - row)
            around += max(0, 1 - apart[0]) * max(0, 1 - apart[1]) * visual[0, i]
        assert 0 < column < grid - 1 and 0 < row < grid - 1  # beyond, the outermost patch goes on
        expected = head.label_head(state + head.at_point(around))[0]
        torch.testing.assert_close(logits[0, 0, m], expected, atol=1e-5, rtol=1e-4)


def test_labels_do_not_move_points():
    generator = make_generator()
    outputs = generator(*make_inputs())
    for head in (generator.point_head.label_head, generator.point_head.offset_head):
        for parameter in head.parameters():
            parameter.grad = None
    outputs["pred_point_logits"].sum().backward()
    assert all(p.grad is None for p in generator.point_head.offset_head.parameters())
    assert all(p.grad is not None for p in generator.point_head.label_head.parameters())


def test_padding_and_neighbours_do_not_matter():
    generator = make_generator().eval()
    visual, words, mask, index = make_inputs()
    expected = generator(visual, words, mask, index)
    noisy = torch.where(mask[..., None], words, torch.full_like(words, 9.0))
    found = generator(visual, noisy, mask, index)
    alone = generator([v[1:] for v in visual], words[1:2], mask[1:2], torch.tensor([0]))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
        second = value[:, 1:2] if name.startswith("aux_") else value[1:2]
        torch.testing.assert_close(alone[name], second, atol=1e-5, rtol=1e-4)


def test_serves_any_grid():
    generator = make_generator()
    for grid in (3, 14):
        assert generator(*make_inputs(grid=grid))["pred_points"].shape == (3, 5, 4, 2)


def test_every_parameter_learns():
    generator = make_generator()
    outputs = generator(*make_inputs())
    sum(value.square().sum() for value in outputs.values()).backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("num_queries", [3, 20])
@pytest.mark.parametrize("kind", [Attention, FewQueriesAttention])
def test_attention_equals_torchs(kind, num_queries):
    torch.manual_seed(0)
    ours = kind(16, 12, 4)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = torch.nn.MultiheadAttention(16, 4, kdim=12, vdim=12, batch_first=True)
    theirs.load_state_dict(
        {
            "q_proj_weight": ours.q.weight,
            "k_proj_weight": ours.k.weight,
            "v_proj_weight": ours.v.weight,
            "in_proj_bias": torch.cat([ours.q.bias, torch.zeros(16), ours.v.bias]),
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    query, memory = torch.randn(2, num_queries, 16), torch.randn(2, 9, 12)
    mask = torch.arange(9) < torch.tensor([4, 9])[:, None]
    expected, theirs_looked_at = theirs(query, memory, memory, key_padding_mask=~mask)
    found = ours(query, memory, mask)
    if kind is FewQueriesAttention:
        found, looked_at = found
        torch.testing.assert_close(looked_at, theirs_looked_at, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_patches_are_interpolated_as_torch_interpolates_pixels():
    torch.manual_seed(0)
    visual = torch.randn(2, 25, 6, requires_grad=True)
    points = 1.4 * torch.rand(2, 40, 2) - 0.2  # some lie beyond the outermost centres
    pixels = visual.transpose(1, 2).unflatten(-1, (5, 5))
    expected = F.grid_sample(
        pixels, 2 * points[:, None] - 1, padding_mode="border", align_corners=False
    )[:, :, 0].transpose(1, 2)
    found = _bilinear(visual, points)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad((x * weight).sum(), visual)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


def test_every_level_is_read():
    generator = make_generator()
    outputs = generator(*make_inputs())
    num_stages = len(generator.levels)
    assert outputs["aux_pred_points"].shape == (num_stages - 1, 3, 5, 4, 2)
    assert outputs["aux_pred_referent_logits"].shape == (num_stages - 1, 3, 5)
    assert not torch.equal(outputs["aux_pred_points"][-1], outputs["pred_points"])
    assert set(generator.eval()(*make_inputs())) == set(outputs)


def test_the_last_level_alone_is_read_where_no_other_is_wanted():
    generator, inputs, reads = make_generator(), make_inputs(), []
    generator.point_head.register_forward_hook(lambda *_: reads.append(1))
    expected = generator(*inputs)
    assert len(reads) == len(generator.levels)
    found = generator(*inputs, read_all=False)
    assert len(reads) == len(generator.levels) + 1
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name][:0] if name.startswith("aux_") else expected[name])


def test_trains_after_it_has_inferred_in_the_same_process():
    generator = make_generator()
    inputs = make_inputs(grid=5)  # a size no other test asks for
    with torch.inference_mode():
        generator(*inputs)
    generator(*inputs)["pred_points"].sum().backward()
    assert generator.queries.grad.abs().sum() > 0

"""The optimisers and the learning-rate schedules of a stage."""

import copy

import pytest
import torch
from torch import nn

from ppt.training.optim import Muon, build_optimizer, build_schedule, orthogonal

# ---------------------------------------------------------------- Muon

SHAPES = [(8, 8), (8, 8), (12, 8), (6, 40), (6, 40), (40, 6)]
"""Square, tall and wide matrices, some of them of one shape."""


def parameters(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(given, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in given:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_matrices_move_as_with_torchs_muon():
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    optimizers = [
        Muon(ours, 0.05),
        torch.optim.Muon(
            theirs, lr=0.05, momentum=0.8, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        ),
    ]
    for seed in range(5):
        for given, optimizer in zip((ours, theirs), optimizers, strict=True):
            give_gradients(given, seed)
            optimizer.step()
    for before, our, their in zip(parameters(SHAPES), ours, theirs, strict=True):
        moved = (their - before).norm()
        assert moved > 0.01
        assert (our - their).norm() < 0.02 * moved  # both compute in bfloat16


def test_singular_values_come_near_one():
    matrices = torch.randn(5, 24, 10, generator=torch.Generator().manual_seed(3))
    matrices = matrices @ torch.diag(torch.logspace(0, -1.5, 10))  # far from equal
    assert torch.linalg.svdvals(matrices).min() < 0.05 * torch.linalg.svdvals(matrices).max()
    for found in (orthogonal(matrices), orthogonal(matrices.mT)):
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.5 and values.max() < 1.3


def test_a_vector_moves_along_its_gradient():
    (vector,) = parameters([(9,)])
    before = vector.detach().clone()
    vector.grad = torch.arange(9.0)
    Muon([vector], 0.1).step()
    # 0.1 times a fifth of the root of 9, along the gradient of length 1
    wanted = before - 0.1 * 0.2 * 3 * vector.grad / vector.grad.norm()
    assert torch.allclose(vector, wanted, atol=1e-6)


def test_a_parameter_without_a_gradient_stays():
    first, second = parameters([(4, 4), (4, 4)])
    before = second.detach().clone()
    optimizer = Muon([first, second], 0.1)
    give_gradients([first], 1)
    optimizer.step()
    assert torch.equal(second, before)
    give_gradients([first, second], 2)
    second.grad.zero_()
    optimizer.step()
    assert torch.equal(second, before)


def test_a_closure_computes_the_gradient():
    (vector,) = parameters([(4,)])
    before = vector.detach().clone()
    optimizer = Muon([vector], 0.1)

    def closure():
        loss = (vector**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx((before**2).sum().item())
    assert vector.norm() < before.norm()


def test_muon_goes_on_from_its_state():
    shapes = [*SHAPES, (5,), (1, 7)]
    unbroken = parameters(shapes)
    optimizer = Muon(unbroken, 0.1)
    for seed in range(2):
        give_gradients(unbroken, seed)
        optimizer.step()
    resumed = [nn.Parameter(p.detach().clone()) for p in unbroken]
    restored = Muon(resumed, 0.5)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for given, of in ((unbroken, optimizer), (resumed, restored)):
        give_gradients(given, 7)
        of.step()
    for a, b in zip(unbroken, resumed, strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- schedule


def rates(name, num_steps, done=0, optimizer=None):
    """The learning rate of each step that is left, as shares of the optimizer's own."""
    optimizer = optimizer or build_optimizer(nn.Linear(1, 1), "adam", 0.5)
    scheduler = build_schedule(optimizer, name, num_iterations=num_steps, done=done)
    found = []
    for _ in range(done, num_steps):
        found.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        scheduler.step()
    return found, optimizer


def test_a_constant_schedule_changes_nothing():
    assert rates("constant", 7)[0] == [1.0] * 7


def test_decay_rises_and_falls():
    found, _ = rates("decay", 100)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert found[50] == 1.0 and found[75] == pytest.approx(0.5)
    assert found[-1] == pytest.approx(0.05)
    assert rates("decay", 1)[0] == pytest.approx([1.0])


def test_a_schedule_goes_on_where_it_stood():
    whole, _ = rates("decay", 40)
    optimizer = build_optimizer(nn.Linear(1, 1), "adam", 0.5)
    scheduler = build_schedule(optimizer, "decay", num_iterations=40)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    restored = build_optimizer(nn.Linear(1, 1), "adam", 0.5)
    restored.load_state_dict(optimizer.state_dict())
    assert rates("decay", 40, done=10, optimizer=restored)[0] == pytest.approx(whole[10:])

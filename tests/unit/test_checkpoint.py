"""Checkpoints come back as they were and refuse what does not fit."""

import pytest
import torch

from ppt.models.frozen import hash_tensors
from ppt.models.point_generator import PointGenerator
from ppt.training.checkpoint import checkpoint_files, load_checkpoint

SIZES = {"num_points": 2, "hidden_size": 8, "num_heads": 2, "ffn_size": 8}
LIMITS = {"positive_above": 1.9, "negative_below": -3.0}


def make(seed, num_queries=3):
    torch.manual_seed(seed)
    generator = PointGenerator(
        8, 8, 1, num_queries=num_queries, fusion_size=4, head_size=8, **SIZES, **LIMITS
    )
    return generator, torch.optim.Adam(generator.parameters(), lr=1e-2)


def digest(generator):
    return hash_tensors(generator.state_dict())


def step(generator, optimizer, seed):
    torch.manual_seed(seed)
    mask, index = torch.ones(2, 3, dtype=torch.bool), torch.arange(2)
    outputs = generator([torch.randn(2, 4, 8)], torch.randn(2, 3, 8), mask, index)
    optimizer.zero_grad()
    sum(value.square().sum() for value in outputs.values()).backward()
    optimizer.step()


def save(folder, *state):
    folder.mkdir(exist_ok=True)
    for name, content in checkpoint_files(*state).items():
        (folder / name).write_bytes(content)


def test_going_on_equals_never_stopping(tmp_path):
    unbroken, optimizer = make(seed=0)
    step(unbroken, optimizer, seed=1)
    save(tmp_path / "new", unbroken, optimizer, {"epoch": 1, "history": [{"loss": 0.5}]})
    step(unbroken, optimizer, seed=2)

    resumed, optimizer = make(seed=9)
    metadata = load_checkpoint(tmp_path / "new", resumed, optimizer)
    step(resumed, optimizer, seed=2)
    assert metadata == {"epoch": 1, "history": [{"loss": 0.5}]}
    assert digest(resumed) == digest(unbroken)


def test_without_an_optimizer(tmp_path):
    generator, _ = make(seed=0)
    save(tmp_path, generator, None, {})
    other, optimizer = make(seed=1)
    load_checkpoint(tmp_path, other)
    assert digest(other) == digest(generator)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path, other, optimizer)


def test_another_generator_is_refused_by_name(tmp_path):
    generator, optimizer = make(seed=0)
    save(tmp_path, generator, optimizer, {})
    other, _ = make(seed=0, num_queries=4)
    with pytest.raises(ValueError, match=r"queries is \(3, 8\), the model wants \(4, 8\)"):
        load_checkpoint(tmp_path, other)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere", make(seed=0)[0])

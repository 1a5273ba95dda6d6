"""The optimiser, the learning-rate schedule and the saving of weights for both pretrainings."""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

WARM_UP_STEPS = 100  # iterations


def build_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Build AdamW with weight decay on tensors of two or more dimensions only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.03},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def build_schedule(
    optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build a schedule of `steps` iterations.

    The learning rate follows half a cosine from its full value to 1% of it, and is multiplied by a
    linear rise during the first WARM_UP_STEPS iterations.
    """

    def factor(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))
        return min(1.0, (step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * cosine)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def save_weights(model: nn.Module, path: Path, metadata: dict[str, object]) -> None:
    """Save the weights as fp16 safetensors; `path` appears only when the file is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    part = path.with_suffix(".part")
    save_file(weights, part, {name: str(value) for name, value in metadata.items()})
    part.replace(path)

"""What both pretrainings share: one optimiser, one schedule by step count, one way to save."""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

WARM_UP_STEPS = 100


def build_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.03},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def build_schedule(
    optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine to 1% of the learning rate."""

    def factor(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))
        return min(1.0, (step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * cosine)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def save_weights(model: nn.Module, path: Path, metadata: dict[str, object]) -> None:
    """Saves the weights as fp16 safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    part = path.with_suffix(".part")
    save_file(weights, part, {name: str(value) for name, value in metadata.items()})
    part.replace(path)

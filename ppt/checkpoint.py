"""A checkpoint is a folder: the generator's parameters, the optimizer's state, plain facts.

The frozen encoders are not in it: `metadata` should say which ones the generator belongs to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from ppt.models.frozen import hash_tensors

GENERATOR = "generator.safetensors"
OPTIMIZER = "optimizer.pt"
METADATA = "metadata.json"


def save_checkpoint(
    folder: str | Path,
    generator: nn.Module,
    optimizer: Optimizer | None,
    metadata: dict[str, Any],
) -> None:
    """Write the three files into `folder`, made if missing; `metadata` must be JSON-able."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous() for name, value in generator.state_dict().items()}
    save_file(state, folder / GENERATOR)
    if optimizer is not None:
        torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    (folder / METADATA).write_text(json.dumps(metadata, indent=1, sort_keys=True))


def load_checkpoint(
    folder: str | Path, generator: nn.Module, optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Read `folder` into `generator` and, if given, `optimizer`; returns the metadata.

    Raises FileNotFoundError for a missing file and ValueError naming the parameter that does not
    fit this generator.
    """
    folder = Path(folder)
    state = load_file(folder / GENERATOR)
    expected = generator.state_dict()
    for name in sorted(state.keys() | expected.keys()):
        found, wanted = (tuple(s[name].shape) if name in s else None for s in (state, expected))
        if found != wanted:
            raise ValueError(
                f"{folder / GENERATOR}: {name} is {found or 'missing'}, "
                f"the model wants {wanted or 'no such parameter'}"
            )
    generator.load_state_dict(state)
    if optimizer is not None:
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
    return json.loads((folder / METADATA).read_text())


def digest(generator: nn.Module) -> str:
    """SHA-256 (hex) of the generator's parameters."""
    return hash_tensors(generator.state_dict())

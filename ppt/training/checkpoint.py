"""Writing and reading of checkpoints.

A checkpoint is a folder with the generator's parameters, the optimiser's state and metadata. It
does not hold the frozen encoders. The manifest of a trained stage names the encoders to which the
generator belongs, and `ppt.serving.stored_checkpoint` reads it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.optim import Optimizer

from ppt.store.checkpoint_files import GENERATOR, METADATA, OPTIMIZER


def checkpoint_files(
    generator: nn.Module, optimizer: Optimizer | None, metadata: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the content of a checkpoint's files by their names.

    Args:
        generator: the module whose parameters are saved.
        optimizer: the optimiser whose state is saved, or None.
        metadata: a dictionary that can be written as JSON.
    """
    state = {name: value.detach().contiguous() for name, value in generator.state_dict().items()}
    files = {GENERATOR: save(state)}
    if optimizer is not None:
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        files[OPTIMIZER] = buffer.getvalue()
    files[METADATA] = json.dumps(metadata, indent=1, sort_keys=True).encode()
    return files


def load_checkpoint(
    folder: str | Path, generator: nn.Module, optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Load a checkpoint into the generator and, if given, the optimiser, and return its metadata.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a parameter is missing, unknown or of another shape; the message names it.
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

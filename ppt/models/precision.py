"""Mixed precision: bfloat16 on a GPU where it does no harm, float32 everywhere else."""

from __future__ import annotations

import torch

AUTOCAST = {"cuda": torch.bfloat16}
"""The type of matrix products and convolutions under `autocast`, by type of device."""


def autocast(device: torch.device) -> torch.autocast:
    """A context for the forward passes of large nets: bf16 on a GPU; on a CPU nothing changes."""
    kind = device.type
    return torch.autocast(kind, AUTOCAST.get(kind), enabled=kind in AUTOCAST)


def full_precision(device: torch.device) -> torch.autocast:
    """A context for coordinates inside `autocast`: bf16 has only 256 steps across a picture."""
    return torch.autocast(device.type, enabled=False)

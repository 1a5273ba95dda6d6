"""Where numbers may be coarse: bfloat16 on a GPU; float32 on a CPU and wherever it counts."""

from __future__ import annotations

import torch

AUTOCAST = {"cuda": torch.bfloat16}
"""Device types whose matrix products and convolutions run in another type; the rest in float32."""


def autocast(device: torch.device) -> torch.autocast:
    """For the forward passes of big nets: bf16 on a GPU, on a CPU nothing changes."""
    kind = device.type
    return torch.autocast(kind, AUTOCAST.get(kind), enabled=kind in AUTOCAST)


def full_precision(device: torch.device) -> torch.autocast:
    """For coordinates inside `autocast`: bf16 has but 256 steps across a picture."""
    return torch.autocast(device.type, enabled=False)

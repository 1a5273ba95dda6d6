"""The base class of frozen encoders, and the hash by which their weights are recognised."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A module that never trains: no gradients to its parameters, always in evaluation mode."""

    def freeze(self) -> None:
        """Freeze all parameters; subclasses call it at the end of their constructor."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    def numbers(self) -> dict[str, Tensor]:
        """Return all tensors that its outputs depend on, also buffers that no checkpoint holds."""
        return {**self.state_dict(), **dict(self.named_buffers())}


def hash_tensors(tensors: dict[str, Tensor], settings: Any = None) -> str:
    """Compute the SHA-256 (hex) of named tensors and of settings that JSON can hold."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Mixed precision: bfloat16 on a GPU where it does no harm, float32 everywhere else.

`onednn` chooses the library that multiplies float32 matrices on a CPU, and `ordered` the order in
which several threads add.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def onednn() -> Iterator[None]:
    """A context in which oneDNN multiplies float32 matrices on a CPU with AVX-512.

    By default torch has MKL do it, which leaves AVX-512 unused on CPUs of other makers than Intel.
    torch has a single way to ask for oneDNN: to permit it to round to bfloat16. It makes use of the
    permission only on CPUs with AMX, and there MKL remains. It is for training: with oneDNN the
    last bits of a row depend on its place in the batch, and those of a prediction should not.
    """
    cpu = torch.cpu.get_capabilities()
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    if cpu.get("avx512_f") and not cpu.get("amx_bf16"):
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def ordered(device: torch.device) -> Iterator[None]:
    """A context in which threads of a CPU add gradients in the same order each time.

    Otherwise the gradient of an index is added by all threads at once, in any order. On a GPU
    nothing changes.
    """
    memory: Any = torch.utils.deterministic  # torch has no types for it
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]

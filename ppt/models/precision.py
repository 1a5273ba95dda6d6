"""Precision: on a GPU bfloat16 for the frozen nets, TensorFloat-32 for what trains.

On a CPU everything is float32; `quick_products` chooses the library that multiplies matrices there,
and `ordered` the order in which several threads add.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

AUTOCAST = {"cuda": torch.bfloat16}
"""The type of matrix products and convolutions under `autocast`, by type of device."""


def autocast(device: torch.device) -> torch.autocast:
    """A context for forward passes of frozen nets: bf16 on a GPU; on a CPU nothing changes."""
    kind = device.type
    return torch.autocast(kind, AUTOCAST.get(kind), enabled=kind in AUTOCAST)


@contextmanager
def quick_products(device: torch.device) -> Iterator[None]:
    """A context for training, in which a device multiplies float32 matrices as quickly as it can.

    A GPU rounds the factors to TensorFloat-32, which has three more binary digits than bfloat16.
    autocast would also have to convert every tensor between its two types, and in an iteration of
    the point generator a GPU waits for the host to launch that.

    On a CPU with AVX-512 oneDNN multiplies. By default torch has MKL do it, which leaves AVX-512
    unused on CPUs of other makers than Intel. torch has a single way to ask for oneDNN: to permit
    it to round to bfloat16. It makes use of the permission only on CPUs with AMX, and there MKL
    remains. With oneDNN the last bits of a row depend on its place in the batch, and those of a
    prediction should not.
    """
    backends: Any = torch.backends  # torch has no types for it
    cpu = torch.cpu.get_capabilities()
    matmul, precision = backends.mkldnn.matmul, None
    if device.type == "cuda":
        matmul, precision = backends.cuda.matmul, "tf32"
    elif cpu.get("avx512_f") and not cpu.get("amx_bf16"):
        precision = "bf16"
    before = matmul.fp32_precision
    matmul.fp32_precision = precision or before
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

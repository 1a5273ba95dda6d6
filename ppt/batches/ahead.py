"""What is made in a thread before it is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

from ppt.batches.batch import Batch

BATCHES_AHEAD = 2
"""The number of batches that are ready in the training process beside the one that it is given."""

Item = TypeVar("Item")


def made_ahead(items: Iterator[Item], number: int) -> Iterator[Item]:
    """Yield items in their order; a thread makes so many of them before they are asked for.

    An error in the thread is raised where its item is asked for.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="made-ahead")

    def make() -> list[Item]:
        return list(islice(items, 1))  # none at the end

    making: deque[Future[list[Item]]] = deque(thread.submit(make) for _ in range(number))
    try:
        while made := making.popleft().result():
            making.append(thread.submit(make))
            yield made.pop()
    finally:
        thread.shutdown(cancel_futures=True)


def for_device(batches: Iterator[Batch], device: str) -> Iterator[Batch]:
    """Yield batches for a device.

    Those for a GPU are read ahead into pinned memory, from which the GPU copies them while the host
    goes on. On a CPU they are read when they are asked for, since a thread would take the
    training's time.
    """
    if device != "cuda":
        return batches
    pinned = (batch.mapped(torch.Tensor.pin_memory) for batch in batches)
    return made_ahead(pinned, BATCHES_AHEAD)

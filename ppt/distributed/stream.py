"""Batches by Ray Data: a task plans and reads the iterations of a part of an epoch.

A row of a block is an iteration, so that it does not matter how Ray cuts or joins blocks. The row
holds the batch as the reader made it; the trainer's process gets views of the object store's memory
and copies nothing.
"""

from __future__ import annotations

import functools
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import ExecutionResources, TaskPoolStrategy
from ray.data.collate_fn import ArrowBatchCollateFn

from ppt.batches.ahead import BATCHES_AHEAD
from ppt.batches.batch import Batch
from ppt.batches.gather import StageReader
from ppt.config import Resources
from ppt.distributed.ray_private import ExecutionCallback

Item = TypeVar("Item")

TASKS_AN_EPOCH, ITERATIONS_A_TASK = 8, 32
"""The most tasks among which an epoch is divided, and the fewest iterations that one of them reads.

What a lost reader has read of its part is read again, and each task costs some milliseconds.
"""

BLOCK_BYTES = 32 * 2**20
"""The size of a block above which it is handed on; it holds one or more iterations."""

PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.1
"""The least and the most time that Ray Data's scheduling loop rests after each round."""


class Pause(ExecutionCallback):
    """A callback that lets Ray Data's scheduling loop rest after each round.

    Ray 2.60 repeats the loop without a rest while a finished block waits to be taken. The loop runs
    in the training worker's own process, where it would compete with the training for the GIL. A
    rest ends when the training asks for a batch, or at once if it waits for one already.
    """

    asked: ClassVar = threading.Event()
    """Set while the training waits for a batch. It is an attribute of the class because Ray Data
    creates the object. A process trains one stage at a time."""

    def on_execution_step(self, executor: object) -> None:
        """Rest. Ray Data calls this after each round."""
        time.sleep(PAUSE_SECONDS)
        self.asked.wait(LONGEST_PAUSE_SECONDS - PAUSE_SECONDS)


def _asking(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items, and keep `Pause.asked` set while the caller waits for one."""
    while True:
        Pause.asked.set()
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            Pause.asked.clear()
        yield item


def stream_epochs(
    reader: StageReader,
    *,
    epochs: range,
    rank: int,
    world_size: int,
    resources: Resources,
    pin: bool = False,
) -> Iterator[Iterator[Batch]]:
    """Begin to read, and return for each epoch an iterator of this worker's batches.

    There is a batch for each iteration. One execution of Ray Data serves all epochs, because
    starting one costs more than a short epoch. It starts while the caller does other things.

    Args:
        reader: reads the batches of the stage.
        epochs: the epochs to stream, numbered from 1.
        rank: the number of this worker.
        world_size: the number of workers.
        resources: says how many tasks read for this worker, with how many CPUs, and how much they
            may read ahead. Each of them is a process with torch in its memory.
        pin: whether the batches are copied to pinned memory, from which a GPU copies them while the
            host goes on.
    """
    if not epochs:
        return iter(())
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # otherwise equal seeds give different runs
    context.custom_execution_callback_classes = [Pause]
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=resources.reader_memory * 1_000_000
    )
    num_iterations = reader.plan.num_iterations
    step = max(-(-num_iterations // TASKS_AN_EPOCH), ITERATIONS_A_TASK)
    parts = [(epoch, start) for epoch in epochs for start in range(0, num_iterations, step)]
    # `from_arrow` would reserve a whole CPU for each block, but the training holds the CPUs.
    dataset = ray.data.from_blocks(
        [
            pa.table(
                {"epoch": [epoch], "start": [start], "stop": [min(start + step, num_iterations)]}
            )
            for epoch, start in parts
        ]
    ).map_batches(
        functools.partial(_read, reader=ray.put(reader), rank=rank, world_size=world_size),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=resources.cpus_per_reader,
        compute=TaskPoolStrategy(size=resources.readers_per_worker),
    )
    rows = dataset.iter_torch_batches(
        batch_size=1, prefetch_batches=BATCHES_AHEAD, collate_fn=_FromRow(pin), device="cpu"
    )
    batches = _begun(_asking(iter(cast(Any, rows))))
    return _by_epoch(batches, epochs, num_iterations)


def _begun(items: Iterator[Item]) -> Iterator[Item]:
    """Let a thread wait for the first of some items, and return an iterator of all of them."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="first-batch")
    first = thread.submit(next, items)
    thread.shutdown(wait=False)

    def all_items() -> Iterator[Item]:
        yield first.result()
        yield from items

    return all_items()


def _by_epoch(
    batches: Iterator[tuple[tuple[int, int], Batch]], epochs: range, num_iterations: int
) -> Iterator[Iterator[Batch]]:
    """Yield an iterator of the batches of each epoch."""
    for epoch in epochs:
        yield _in_order(islice(batches, num_iterations), epoch)
    assert next(batches, None) is None  # at its end Ray Data gives back what it holds


def _in_order(batches: Iterator[tuple[tuple[int, int], Batch]], epoch: int) -> Iterator[Batch]:
    """Yield the batches of an epoch, and check that they come in the order of the plan."""
    for number, (place, batch) in enumerate(batches):
        assert place == (epoch, number), f"epoch {epoch}, iteration {number}: got {place}"
        yield batch


def _read(parts: pa.Table, reader: Any, rank: int, world_size: int) -> Iterator[pa.Table]:
    """Yield a row for each iteration of parts of epochs; `reader` is a reference of Ray."""
    stage_reader: StageReader = ray.get(reader)
    for part in parts.to_pylist():
        chosen = range(part["start"], part["stop"])
        batches = stage_reader.batches(part["epoch"], rank, world_size, chosen)
        for iteration, batch in zip(chosen, batches, strict=True):
            yield to_row((part["epoch"], iteration), batch)


def to_row(place: tuple[int, int], batch: Batch) -> pa.Table:
    """Make a row of a batch and its place, (epoch, iteration).

    The column `head` is the pickled batch without its tensors' memory, of which each further column
    holds one piece without a copy.
    """
    pieces: list[pickle.PickleBuffer] = []
    arrays = batch.mapped(lambda tensor: cast(Any, tensor.numpy()))
    head = pickle.dumps((place, arrays), protocol=5, buffer_callback=pieces.append)
    columns = {"head": pa.array([head], pa.large_binary())}
    for number, piece in enumerate(pieces):
        data = pa.py_buffer(piece.raw())
        offsets = pa.py_buffer(np.array([0, data.size], np.int64))
        columns[f"piece_{number}"] = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), 1, [None, offsets, data]
        )
    return pa.table(columns)


def from_row(row: pa.Table) -> tuple[tuple[int, int], Batch]:
    """Return the place and the batch of a row.

    The tensors are views of the row's memory, which is read-only in the object store.
    """
    head, *pieces = (_memory(column.chunk(0)) for column in row.columns)
    place, arrays = pickle.loads(head, buffers=pieces)
    return place, arrays.mapped(torch.from_dlpack)


def _memory(column: pa.LargeBinaryArray) -> pa.Buffer:
    """Return the bytes of a column of one row without the copy that a scalar of Arrow makes."""
    _, offsets, data = column.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[column.offset : column.offset + 2].tolist()
    return data.slice(start, stop - start)


class _FromRow(ArrowBatchCollateFn):
    """Makes the batch of a row, if wanted in pinned memory; Ray Data calls it in its threads."""

    def __init__(self, pin: bool) -> None:
        self.pin = pin

    def __call__(self, batch: pa.Table) -> Any:
        place, made = from_row(batch)
        return place, made.mapped(torch.Tensor.pin_memory) if self.pin else made

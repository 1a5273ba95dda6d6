"""Batches by Ray Data: rows of a plan go in, Arrow tables with features and labels come out."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import TaskPoolStrategy

from ppt.batches.gather import gather
from ppt.batches.sampler import LabelTable, Plan
from ppt.distributed.ray_private import ExecutionCallback
from ppt.store.arrays import is_tensor, tensor_bytes
from ppt.store.lookup import mapped

READERS = 1
"""The number of tasks that fetch rows for one worker at the same time.

Each task is a process with torch in its memory. One task is enough, because a block of many
iterations is read in the time that a few iterations take.
"""

BLOCK_BYTES = 32 * 2**20
"""The approximate size of a block of fetched rows."""


PAUSE_SECONDS = 0.02
"""The time that Ray Data's scheduling loop rests after each round."""


class Pause(ExecutionCallback):
    """A callback that lets Ray Data's scheduling loop rest after each round.

    Ray 2.60 repeats the loop without a rest while a finished block waits to be taken. The loop runs
    in the training worker's own process, where it would compete with the training for the GIL.
    """

    def on_execution_step(self, executor: object) -> None:
        """Sleep for `PAUSE_SECONDS`. Ray Data calls this after each round."""
        time.sleep(PAUSE_SECONDS)


def stream_epochs(
    plan: Plan,
    tables: Sequence[LabelTable],
    *,
    epochs: range,
    rank: int,
    world_size: int,
    cpus_per_reader: float,
) -> Iterator[Iterator[pa.Table]]:
    """Yield for each epoch an iterator of this worker's tables, one for each iteration.

    One execution of Ray Data serves all epochs, because starting one costs more than a short epoch.

    Args:
        plan: the plan of the stage.
        tables: the label tables to which the plan refers.
        epochs: the epochs to stream, numbered from 1.
        rank: the number of this worker.
        world_size: the number of workers.
        cpus_per_reader: the CPUs that a fetching task reserves.
    """
    if not epochs:
        return
    blocks: list[pa.Table] = []
    iterations_a_block = max(1, BLOCK_BYTES // _bytes_an_iteration(plan, tables, world_size))
    for epoch in epochs:
        blocks += _split(plan.epoch(epoch, rank, world_size), iterations_a_block)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # otherwise equal seeds give different runs
    context.custom_execution_callback_classes = [Pause]
    # `from_arrow` would reserve a whole CPU for each block, but the training holds the CPUs.
    dataset = ray.data.from_blocks(blocks).map_batches(
        functools.partial(gather, tables=tables),
        batch_format="pyarrow",
        batch_size=None,
        zero_copy_batch=True,
        num_cpus=cpus_per_reader,
        compute=TaskPoolStrategy(size=READERS),
    )
    iterations = _iterations(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    for _, group in groupby(iterations, key=lambda item: item[0][0]):
        yield (table for _, table in group)


def _bytes_an_iteration(plan: Plan, tables: Sequence[LabelTable], world_size: int) -> int:
    """Return the size of one worker's features in an iteration."""
    schema = mapped(tables[0].features, 0).schema
    row = sum(tensor_bytes(field) for field in schema if is_tensor(field))
    return max(1, row * plan.batch_size // world_size)


def _split(epoch: pa.Table, iterations_a_block: int) -> list[pa.Table]:
    """Cut an epoch's plan into blocks of whole iterations."""
    block = epoch["iteration"].to_numpy() // iterations_a_block
    bounds = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(block)]
    return [epoch.slice(a, b - a) for a, b in zip(bounds, bounds[1:], strict=False) if b > a]


def _iterations(blocks: Iterator[pa.Table]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    """Yield ((epoch, iteration), table) of each iteration.

    An iteration may be spread over several blocks, because Ray may cut a large block anywhere.
    """
    held: list[pa.Table] = []
    key: tuple[int, int] | None = None
    for block in blocks:
        keys = np.stack([block["epoch"].to_numpy(), block["iteration"].to_numpy()], axis=1)
        cuts = np.flatnonzero((np.diff(keys, axis=0) != 0).any(axis=1)) + 1
        bounds = [0, *cuts.tolist(), len(keys)]
        for start, stop in zip(bounds, bounds[1:], strict=False):
            if stop == start:
                continue
            current = (int(keys[start, 0]), int(keys[start, 1]))
            if key is not None and current != key:
                yield key, pa.concat_tables(held)
                held = []
            key = current
            held.append(block.slice(start, stop - start))
    if key is not None:
        yield key, pa.concat_tables(held)

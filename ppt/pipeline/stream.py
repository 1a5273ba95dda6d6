"""Ray Data as the way of the batches: plan rows in, Arrow batches with features and labels out."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback

from ppt.pipeline.mixture import LabelTable, Plan
from ppt.pipeline.rows import PictureRow, picture_table
from ppt.pipeline.tables import OPEN_BUCKETS, mapped
from ppt.store import Node

READERS = 1
"""Fetching tasks of one worker at a time, each a process with torch in its memory. One is ahead of
training by far: a block of many steps is read in the time of a few."""

BLOCK_BYTES = 32 * 2**20
"""About how large a block of fetched rows may be."""


PAUSE_SECONDS = 0.02
"""How long Ray Data's scheduling rests between two looks at its tasks."""


class Pause(ExecutionCallback):
    """Rests after each step of Ray Data's scheduling.

    Ray 2.60 goes round without a rest while a finished block waits to be taken. It does so in the
    training worker's own process: without this, training shares its GIL with a loop that does
    nothing (on two cores the quickstart's D_ref step took 341 s instead of 164 s).
    """

    def on_execution_step(self, executor: object) -> None:
        time.sleep(PAUSE_SECONDS)


@functools.lru_cache(maxsize=OPEN_BUCKETS)
def _labels(node: Node, table: str, bucket: int) -> list[dict]:
    return node.read(bucket, table).to_pylist()


@dataclass(frozen=True)
class FetchRows:
    """Plan rows -> one row a picture: its features and the expressions that the plan names."""

    tables: Sequence[LabelTable]

    def __call__(self, plan: pa.Table) -> pa.Table:
        rows = []
        for entry in plan.to_pylist():
            source, bucket = self.tables[entry["table"]], entry["bucket"]
            labels = [_labels(source.labels, source.table, bucket)[i] for i in entry["rows"]]
            picture = labels[0]["picture"]
            rows.append(PictureRow(source.features, source.words, bucket, picture, labels))
        table = picture_table(rows)
        return table.append_column("epoch", plan["epoch"]).append_column("step", plan["step"])


def stream_epochs(
    plan: Plan,
    tables: Sequence[LabelTable],
    *,
    epochs: range,
    rank: int,
    world_size: int,
    cpus_per_reader: float,
) -> Iterator[Iterator[pa.Table]]:
    """For each epoch an iterator of its steps' tables, this worker's part of them.

    One Ray Data execution serves all epochs: starting one costs more than a short epoch.
    """
    if not epochs:
        return
    blocks: list[pa.Table] = []
    steps_a_block = max(1, BLOCK_BYTES // _bytes_a_step(plan, tables, world_size))
    for epoch in epochs:
        blocks += _split(plan.epoch(epoch, rank, world_size), steps_a_block)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # without it no seed reproduces anything
    context.custom_execution_callback_classes = [Pause]
    # from_arrow would ask for a whole CPU to look at each block, which training has taken.
    dataset = ray.data.from_blocks(blocks).map_batches(
        FetchRows(tables),
        batch_format="pyarrow",
        batch_size=None,
        zero_copy_batch=True,
        num_cpus=cpus_per_reader,
        compute=TaskPoolStrategy(size=READERS),
    )
    steps = _steps(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    for _, group in groupby(steps, key=lambda item: item[0][0]):
        yield (table for _, table in group)


def _bytes_a_step(plan: Plan, tables: Sequence[LabelTable], world_size: int) -> int:
    schema = mapped(tables[0].features, 0).schema
    row = sum(f.type.byte_width for f in schema if pa.types.is_fixed_size_binary(f.type))
    return max(1, row * plan.batch_size // world_size)


def _split(epoch: pa.Table, steps_a_block: int) -> list[pa.Table]:
    block = epoch["step"].to_numpy() // steps_a_block
    bounds = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(block)]
    return [epoch.slice(a, b - a) for a, b in zip(bounds, bounds[1:], strict=False) if b > a]


def _steps(blocks: Iterator[pa.Table]) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    """((epoch, step), table) of each step; Ray may have cut a large block anywhere."""
    held: list[pa.Table] = []
    key: tuple[int, int] | None = None
    for block in blocks:
        keys = np.stack([block["epoch"].to_numpy(), block["step"].to_numpy()], axis=1)
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

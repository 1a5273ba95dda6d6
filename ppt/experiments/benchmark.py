"""Benchmarks of what feeds a training and of its iteration, in this process and without Ray.

Each compares two things side by side in one run, because ratios hold where seconds do not: the
input path with the bare copy of the same features, and the parts of an iteration with the whole.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppt.batches.batch import Batch
from ppt.batches.gather import StageReader, features_of
from ppt.models.point_prompting import PointPrompting
from ppt.store.lookup import mapped, row_of
from ppt.training.criterion import SetCriterion
from ppt.training.loop import StageWorker
from ppt.training.matcher import HungarianMatcher

WHOLE, REST = "whole", "rest"
"""The names of an iteration, and of what is in none of its parts."""


def measure_input(reader: StageReader, repeats: int = 3) -> dict[str, float]:
    """Measure the input path: an epoch of batches as one worker's reader makes them.

    The epoch is read `repeats` times, each time followed by the bare copy of the same features into
    one buffer, and the shortest times count. It is read once before, so that files are in memory.

    Returns:
        `expressions_per_second` and `megabytes_per_second` of the reader,
        `bare_megabytes_per_second` of the copy, `share_of_bare`, and `reads_per_picture`: how often
        a picture was read in an iteration that uses it.
    """
    _count(reader.batches(1, 0, 1))
    read, bare = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        counted = _count(reader.batches(1, 0, 1))
        read.append(time.perf_counter() - started)
        started = time.perf_counter()
        num_bytes = _copy_bare(reader)
        bare.append(time.perf_counter() - started)
    expressions, reads, pictures = counted
    return {
        "expressions_per_second": expressions / min(read),
        "megabytes_per_second": num_bytes / min(read) / 1e6,
        "bare_megabytes_per_second": num_bytes / min(bare) / 1e6,
        "share_of_bare": min(bare) / min(read),
        "reads_per_picture": reads / pictures,
    }


def _count(batches: Iterable[Batch]) -> tuple[int, int, int]:
    """Return the expressions of batches, their pictures, and their pictures each counted once."""
    expressions = reads = pictures = 0
    for batch in batches:
        expressions += len(batch.texts)
        reads += len(batch.pictures)
        pictures += len(set(batch.pictures))
    return expressions, reads, pictures


def _copy_bare(reader: StageReader) -> int:
    """Copy the features of an epoch's pictures, one by one, into one buffer; return the bytes."""
    plan, num_bytes, buffer = reader.plan.epoch(1, 0, 1), 0, np.zeros(0, np.float16)
    columns = (plan[name].to_pylist() for name in ("table", "bucket", "rows"))
    for number, bucket, rows in zip(*columns, strict=True):
        features = reader.tables[number].features
        picture = reader.labels(number, bucket).pictures[rows[0]]
        row, table = row_of(features, bucket, "picture")[picture], mapped(features, bucket)
        for name in features_of(table.schema):
            array = table.row(name, row).ravel()
            if len(buffer) < len(array):
                buffer = np.zeros(len(array), np.float16)
            np.copyto(buffer[: len(array)], array)
            num_bytes += array.nbytes
    return num_bytes


def measure_iteration(
    worker: StageWorker, batches: Iterable[Batch], synchronise: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Measure the parts of a training iteration, as `StageWorker.train_epoch` carries it out.

    Args:
        worker: the worker; it is trained by this.
        batches: the batches of the iterations, read as the training would read them.
        synchronise: waits until the device has done what was asked of it. It is called at the
            limits of each part.

    Returns:
        The mean seconds of each part in an iteration, without the parts within it, and of the
        `whole` iteration.
    """
    clock, number = _Clock(synchronise), 0

    def counted() -> None:
        nonlocal number
        number += 1

    parts: list[tuple[Any, str, str]] = [
        (Batch, "to", "transfer"),
        (PointPrompting, "forward", "forward"),
        (PointPrompting, "decode", "decode"),
        (HungarianMatcher, "__call__", "matching"),
        (SetCriterion, "forward", "losses"),
        (Tensor, "backward", "backward"),
        (worker.optimizer, "step", "optimiser"),
    ]
    with clock.watching(parts), clock.part(REST):
        worker.train_epoch(1, clock.each(batches, "fetch"), on_iteration=counted)
    seconds = {name: value / number for name, value in clock.seconds.items()}
    return {**seconds, WHOLE: sum(seconds.values())}


class _Clock:
    """Adds up the seconds of named parts; those of a part within another count for it alone."""

    def __init__(self, synchronise: Callable[[], object]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._synchronise = synchronise
        self._within: list[str] = []
        self._since = 0.0

    def _lap(self) -> None:
        self._synchronise()
        now = time.perf_counter()
        if self._within:
            self.seconds[self._within[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of a block for a part."""
        self._lap()
        self._within.append(name)
        try:
            yield
        finally:
            self._lap()
            self._within.pop()

    def each(self, items: Iterable[Batch], name: str) -> Iterator[Batch]:
        """Yield items, and count the time until each is there for a part."""
        iterator = iter(items)
        while True:
            with self.part(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    @contextmanager
    def watching(self, parts: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Count the calls of methods, each given as (owner, method, part), during a block."""
        originals = [(owner, method, getattr(owner, method)) for owner, method, _ in parts]

        def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.part(name):
                    return function(*args, **kwargs)

            return call

        try:
            for owner, method, name in parts:
                setattr(owner, method, timed(getattr(owner, method), name))
            yield
        finally:
            for owner, method, original in originals:
                setattr(owner, method, original)


def device_synchroniser(device: torch.device) -> Callable[[], object]:
    """Return what waits for a device."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None

"""Clocks and counters that the parts of the benchmark share."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from ppt.models.loaded import current_device, threads
from ppt.models.precision import AUTOCAST, quick_products
from ppt.store.nodes import Node

Item = TypeVar("Item")

POLL_SECONDS = 0.25
"""The time between two looks at the memory of the processes."""


def synchronise() -> None:
    """Wait until the device has done what was asked of it."""
    if current_device() == "cuda":
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], object]) -> float:
    """Return how long a call takes, including what it has asked the device to do."""
    synchronise()
    started = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - started


def shortest(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """Call functions in turn, so often, and return the shortest time of each in seconds.

    What disturbs the machine for a while then disturbs all of them.
    """
    rounds = [[seconds_of(function) for function in functions] for _ in range(repeats)]
    return [min(times) for times in zip(*rounds, strict=True)]


def epochs_finished(node: Node) -> list[float]:
    """Return when the epochs of a checkpoint were finished: Unix times in seconds, ascending."""
    names = [name for name in node.sizes() if name.startswith("epoch-")]
    return sorted(node.read_json(name)["finished"] for name in names)


def measured_ceiling(cpus: float, repeats: int = 5) -> float:
    """Return the FLOP/s of a large matrix product on the device, in the type that nets use there.

    On a CPU it is computed as in a training, with the threads of a process with so many CPUs.
    """
    device = torch.device(current_device())
    side = 8_192 if device.type == "cuda" else 1_024
    dtype = AUTOCAST.get(device.type, torch.float32)
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    with threads(cpus), quick_products(device):
        shortest(1, lambda: left @ right)
        (seconds,) = shortest(repeats, lambda: left @ right)
    return 2 * side**3 / seconds


# ---------------------------------------------------------------- parts of an iteration


class Clock:
    """Adds up a quantity by named parts; what is counted within a part counts for it alone.

    `now` returns what has been counted so far, for example seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self._now = now
        self._within: list[str] = []
        self._since = 0.0

    def _lap(self) -> None:
        now = self._now()
        if self._within:
            self.sums[self._within[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens in a block for a part."""
        self._lap()
        self._within.append(name)
        try:
            yield
        finally:
            self._lap()
            self._within.pop()

    def each(self, items: Iterable[Item], name: str) -> Iterator[Item]:
        """Yield items, and count what happens until each is there for a part."""
        iterator = iter(items)
        while True:
            with self.part(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    @contextmanager
    def watching(self, parts: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Count calls, each given as (owner, name of the function, part), during a block."""
        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in parts]

        def counted(function: Callable[..., Any], part: str) -> Callable[..., Any]:
            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.part(part):
                    return function(*args, **kwargs)

            return call

        try:
            for owner, name, part in parts:
                setattr(owner, name, counted(getattr(owner, name), part))
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)


# ---------------------------------------------------------------- memory


class PeakMemory:
    """The most memory that this process and all that it has started had at the same time.

    Files that are mapped into memory do not count, because the system takes their pages back when
    it needs them. What processes share counts once.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> PeakMemory:
        self.bytes = _memory_of_tree()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self.bytes = max(self.bytes, _memory_of_tree())


def _memory_of_tree() -> int:
    """Return the anonymous and shared memory of this process and its descendants, in bytes."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2]
        except OSError:  # it has ended
            continue
        children[int(after_name.split()[1])].append(int(path.parent.name))
    waiting, kilobytes = [os.getpid()], 0
    while waiting:
        process = waiting.pop()
        waiting += children[process]
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name in ("Pss_Anon", "Pss_Shmem"):
                kilobytes += int(value.split()[0])
    return 1024 * kilobytes

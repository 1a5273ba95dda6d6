"""The progress of a training for the driver: its iterations, and the losses of its epochs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ppt.steps.progress import Advance, console, print_epoch, progress_bar

if TYPE_CHECKING:  # at run time it would make the monitor's process import torch
    from ppt.training.stage import EpochMetrics

POLL_SECONDS = 0.5
"""The time between two looks at the monitor."""


class Monitor:
    """An actor to which the worker of rank 0 reports the progress of a training."""

    def __init__(self) -> None:
        self.iterations = 0
        self.total: int | None = None
        self.starts = 0
        self.history: list[EpochMetrics] = []

    def restart(self, history: list[EpochMetrics], iterations: int, total: int) -> None:
        """Set the state from which a group of workers begins or continues.

        Args:
            history: the losses of the epochs before it.
            iterations: the iterations before it.
            total: the iterations of the whole training.
        """
        self.starts += 1
        self.history, self.iterations, self.total = list(history), iterations, total

    def advance(self) -> None:
        """Count one iteration."""
        self.iterations += 1

    def finish_epoch(self, metrics: EpochMetrics) -> None:
        """Add the losses of an epoch."""
        self.history.append(metrics)

    def state(self) -> tuple[int, int | None, list[EpochMetrics], int]:
        """Return the iterations so far and in all, the losses of epochs, and the workers' starts.

        How many there are in all is None before the first start.
        """
        return self.iterations, self.total, self.history, self.starts


@contextmanager
def watch(title: str, on_epoch: Callable[[EpochMetrics], None]) -> Iterator[Any]:
    """Yield a `Monitor` and follow it in a thread.

    The thread shows a bar of the iterations, and calls `on_epoch` with the losses of each epoch.
    """
    # The actor runs on the driver's node: on another one it could die while the workers live.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    monitor: Any = ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()
    finished = threading.Event()

    def follow(advance: Advance) -> None:
        shown = seen = 0
        started = 1
        while True:
            last = finished.wait(POLL_SECONDS)
            iterations, total, history, starts = ray.get(monitor.state.remote())
            if starts > started:
                started = starts
                console.print(
                    f"[yellow]warning:[/] {title}: the workers failed and were started again, they "
                    f"continue after epoch {len(history)}; Ray's log folder says why",
                    highlight=False,
                    soft_wrap=True,
                )
            advance(iterations - shown, total)
            shown = iterations
            for metrics in history[seen:]:
                on_epoch(metrics)
                print_epoch(title, metrics["epoch"], metrics["loss"])
            seen = max(seen, len(history))
            if last:
                return

    with (
        progress_bar(title, None, "iterations") as advance,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        following = thread.submit(follow, advance)
        try:
            yield monitor
        finally:
            finished.set()
            wait([following])
            ray.kill(monitor)
        following.result()  # raises what `on_epoch` raised

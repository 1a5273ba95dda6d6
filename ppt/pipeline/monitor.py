"""What a training run tells the driver while it runs: steps for the bar, losses for the curves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ppt.pipeline.progress import console, progress_bar

POLL_SECONDS = 0.5

EpochMetrics = dict[str, float]


class Monitor:
    """An actor: rank 0 reports here; a restarted worker group says from where it goes on."""

    def __init__(self) -> None:
        self.steps = 0
        self.history: list[EpochMetrics] = []

    def restart(self, history: list[EpochMetrics], steps: int) -> None:
        self.history, self.steps = list(history), steps

    def advance(self) -> None:
        self.steps += 1

    def finish_epoch(self, metrics: EpochMetrics) -> None:
        self.history.append(metrics)

    def state(self) -> tuple[int, list[EpochMetrics]]:
        return self.steps, self.history


def _line(title: str, metrics: EpochMetrics) -> str:
    return f"  {title}, epoch {metrics['epoch']:.0f}: loss {metrics['loss']:.4g}"


@contextmanager
def watch(title: str, total_steps: int, on_epoch: Callable[[EpochMetrics], None]) -> Iterator[Any]:
    """Yields a `Monitor` and follows it: a bar of steps, and `on_epoch` once for each epoch."""
    # Beside the driver: on another node it could be lost while the workers live.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    monitor: Any = ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()
    finished = threading.Event()

    def follow(advance: Callable[[int], None]) -> None:
        shown = seen = 0
        while True:
            last = finished.wait(POLL_SECONDS)
            steps, history = ray.get(monitor.state.remote())
            advance(steps - shown)
            shown = steps
            for metrics in history[seen:]:
                on_epoch(metrics)
                if not console.is_terminal:  # in a log nobody sees the bar
                    console.print(_line(title, metrics), highlight=False)
            seen = max(seen, len(history))
            if last:
                return

    with progress_bar(title, total_steps, "steps") as advance:
        thread = threading.Thread(target=follow, args=(advance,), daemon=True)
        thread.start()
        try:
            yield monitor
        finally:
            finished.set()
            thread.join()
            ray.kill(monitor)

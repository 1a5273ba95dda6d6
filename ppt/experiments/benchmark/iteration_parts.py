"""(f) The parts of a training iteration, its operations, and its share of the device's ceiling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from torch import Tensor
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from ppt.batches import gather
from ppt.batches.batch import Batch
from ppt.experiments.benchmark.measuring import Clock, measured_ceiling, synchronise
from ppt.experiments.benchmark.rows import RATIO, Row, Setting, Workload
from ppt.models.loaded import current_device, threads
from ppt.models.point_prompting import PointPrompting
from ppt.training.criterion import SetCriterion
from ppt.training.loop import StageWorker, build_worker
from ppt.training.matcher import HungarianMatcher

WHOLE, REST = "whole", "rest"
"""The names of an iteration, and of what is in none of its parts."""


def measure_iteration_parts(setting: Setting) -> list[Row]:
    """Measure the parts; unless it is short at both sizes, with a trace of an iteration of each."""
    sizes = (setting.toy,) if setting.short else (setting.toy, setting.full_steps)
    return [row for work in sizes for row in _measure(setting, work)]


def _measure(setting: Setting, work: Workload) -> list[Row]:
    iterations = 3 if setting.short else 2 * (work.iterations or 10)
    cpus = work.stage.resources.cpus_per_worker
    worker, reader = build_worker(work.stage, current_device()), work.reader

    def batches(number: int) -> Iterable[Batch]:
        epochs = (reader.batches(epoch, 0, 1) for epoch in range(1, number + 1))
        return islice((batch for epoch in epochs for batch in epoch), number)

    def seconds() -> float:
        synchronise()
        return time.perf_counter()

    with threads(cpus):
        worker.train_epoch(1, batches(1))
        parts = by_part(worker, batches(iterations), seconds)
        with FlopCounterMode(display=False) as counter:
            operations = by_part(worker, batches(1), counter.get_total_flops)
        if not setting.short:
            with profile() as profiler:
                worker.train_epoch(1, batches(1))
            profiler.export_chrome_trace(str(setting.out / f"trace-{work.size}.json.gz"))
    ceiling, rate = measured_ceiling(cpus), operations[WHOLE] / parts[WHOLE]
    batch_size = work.stage.training.global_batch_size
    return [
        *(Row("f", work.size, name, 1e3 * value, "ms") for name, value in parts.items()),
        *(
            Row("f", work.size, f"operations, {name}", value / 1e9, "GFLOP")
            for name, value in operations.items()
            if value
        ),
        Row("f", work.size, "training", batch_size / parts[WHOLE], "expressions/s"),
        Row("f", work.size, "operations a second", rate / 1e9, "GFLOP/s"),
        Row("f", work.size, "ceiling: a matrix product", ceiling / 1e9, "GFLOP/s"),
        Row("f", work.size, "operations a second / ceiling", rate / ceiling, RATIO),
    ]


def by_part(
    worker: StageWorker, batches: Iterable[Batch], now: Callable[[], float]
) -> dict[str, float]:
    """Count something by the parts of iterations, as `StageWorker.train_epoch` carries them out.

    Args:
        worker: the worker; it is trained by this.
        batches: the batches of the iterations, read as the training would read them.
        now: returns what was counted so far, such as seconds. It is called at the limits of each
            part.

    Returns:
        The mean of each part in an iteration, without the parts within it, and of the `whole`
        iteration.
    """
    clock, number = Clock(now), 0

    def iterated() -> None:
        nonlocal number
        number += 1

    parts: list[tuple[Any, str, str]] = [
        (gather, "draw_points", "targets"),
        (Batch, "to", "transfer"),
        (PointPrompting, "forward", "forward"),
        (PointPrompting, "decode", "decode"),
        (HungarianMatcher, "__call__", "matching"),
        (SetCriterion, "forward", "losses"),
        (Tensor, "backward", "backward"),
        (worker.optimizer, "step", "optimiser"),
    ]
    with clock.watching(parts), clock.part(REST):
        worker.train_epoch(1, clock.each(batches, "fetch"), on_iteration=iterated)
    means = {name: value / number for name, value in clock.sums.items()}
    return {**means, WHOLE: sum(means.values())}

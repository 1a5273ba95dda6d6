"""(b) An epoch as a runner carries it out, against a plain loop over the same tensors in memory.

On Ray the batches come through Ray Data and the loop runs in Ray Train. The first epoch, which
begins with the start of the workers, does not count. Both loops write a checkpoint at the end of an
epoch; the runner computes its checksums and writes it while the next epoch begins.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean

from ppt.experiments.benchmark.measuring import epochs_finished, seconds_of
from ppt.experiments.benchmark.rows import RATIO, Row, Setting, Workload
from ppt.models.loaded import current_device, threads
from ppt.training.loop import StageWorker, build_worker
from ppt.training.stage import EpochMetrics, StageTraining

FEWEST_ITERATIONS = 16
"""The fewest iterations of an epoch; the epochs of real data sets have hundreds."""


def measure_streamed_epoch(setting: Setting) -> list[Row]:
    """Measure both loops, at full size too unless the benchmark is short."""
    rows = _measure(setting, setting.toy, epochs=3 if setting.short else 9)
    return rows if setting.short else rows + _measure(setting, setting.full_steps, epochs=2)


def _measure(setting: Setting, work: Workload, epochs: int) -> list[Row]:
    stage = _of_long_epochs(replace(work.stage, name="benchmark"), epochs)
    worker, reader = build_worker(stage, current_device()), stage.reader(stage.plan())
    in_memory = list(reader.batches(1, 0, 1))
    half, expressions = len(in_memory) // 2, sum(len(batch.texts) for batch in in_memory)
    with threads(stage.resources.cpus_per_worker):
        worker.train_epoch(1, in_memory[:2])
        before = seconds_of(lambda: worker.train_epoch(1, in_memory[:half]))
        end_before = seconds_of(lambda: _save(worker))
    metrics: list[EpochMetrics] = []
    with setting.open_runner(setting.curriculum) as runner:
        finished = epochs_finished(runner.train(stage, metrics.append))
    with threads(stage.resources.cpus_per_worker):
        after = seconds_of(lambda: worker.train_epoch(1, in_memory[half:]))
        end_after = seconds_of(lambda: _save(worker))
    end_of_loop = (end_before + end_after) / 2
    in_loop = before + after + end_of_loop
    in_runner = (finished[-1] - finished[0]) / (epochs - 1)
    iterating = mean(expressions / of["expressions_per_second"] for of in metrics[1:])
    name = "Ray Data and Ray Train" if setting.on_ray else "local runner"
    return [
        Row("b", work.size, name, expressions / in_runner, "expressions/s"),
        Row("b", work.size, "plain loop", expressions / in_loop, "expressions/s"),
        Row("b", work.size, f"{name} / plain loop", in_loop / in_runner, RATIO),
        Row("b", work.size, f"{name}, end of an epoch", in_runner - iterating, "s"),
        Row("b", work.size, "plain loop, end of an epoch", end_of_loop, "s"),
    ]


def _of_long_epochs(stage: StageTraining, epochs: int) -> StageTraining:
    """Return a stage whose epochs take all samples so often that they are long enough."""
    sources = dict(stage.stage.sources)
    while stage.plan().num_iterations < FEWEST_ITERATIONS:
        sources = {name: 2 * weight for name, weight in sources.items()}
        stage = replace(stage, stage=stage.stage.model_copy(update={"sources": sources}))
    return replace(stage, stage=stage.stage.model_copy(update={"num_epochs": epochs}))


def _save(worker: StageWorker) -> None:
    """Write a checkpoint into a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in worker.checkpoint().items():
            Path(folder, name).write_bytes(content)

"""(b) An epoch as a runner carries it out, against a plain loop over the same tensors in memory.

On Ray the batches come through Ray Data and the loop runs in Ray Train. The first epoch, which
begins with the start of the workers, does not count; what comes between two epochs, such as the
checkpoint, does.
"""

from __future__ import annotations

from dataclasses import replace

from ppt.experiments.benchmark.measuring import epochs_finished, seconds_of
from ppt.experiments.benchmark.rows import RATIO, Row, Setting, Workload
from ppt.models.loaded import current_device
from ppt.steps.local_runner import threads
from ppt.training.loop import build_worker


def measure_streamed_epoch(setting: Setting) -> list[Row]:
    """Measure both loops, at full size too unless the benchmark is short."""
    rows = _measure(setting, setting.toy, epochs=3 if setting.short else 9)
    return rows if setting.short else rows + _measure(setting, setting.full_steps, epochs=3)


def _measure(setting: Setting, work: Workload, epochs: int) -> list[Row]:
    of_stage = work.stage.stage.model_copy(update={"num_epochs": epochs})
    stage = replace(work.stage, name="benchmark", stage=of_stage)
    worker, reader = build_worker(stage, current_device()), work.reader
    in_memory = list(reader.batches(1, 0, 1))
    expressions = sum(len(batch.texts) for batch in in_memory)

    def plain() -> None:
        worker.train_epoch(1, in_memory)

    with threads(stage.resources.cpus_per_worker):
        plain()
        before = [seconds_of(plain) for _ in range(epochs // 2)]
    with setting.open_runner(setting.curriculum) as runner:
        finished = epochs_finished(runner.train(stage, lambda losses: None))
    with threads(stage.resources.cpus_per_worker):
        after = [seconds_of(plain) for _ in range(epochs // 2)]
    in_loop = sum(before + after) / len(before + after)
    in_runner = (finished[-1] - finished[0]) / (len(finished) - 1)
    name = "Ray Data and Ray Train" if setting.on_ray else "local runner"
    return [
        Row("b", work.size, name, expressions / in_runner, "expressions/s"),
        Row("b", work.size, "plain loop", expressions / in_loop, "expressions/s"),
        Row("b", work.size, f"{name} / plain loop", in_loop / in_runner, RATIO),
    ]

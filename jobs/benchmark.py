"""Measure how fast a curriculum's features reach its training, and the parts of an iteration.

ppt benchmark curricula/quickstart.yaml
ppt benchmark curricula/quickstart.yaml --iterations 50 training.global_batch_size=64

It needs no Ray and no training: what is missing before the first training is made. The first stage
is measured.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from jobs.common import CurriculumPath, Overrides, command, load, open_runner, out, run_alone, say


@command
def main(
    curriculum: CurriculumPath,
    overrides: Overrides = None,
    iterations: Annotated[
        int, typer.Option(min=1, help="The iterations whose parts are measured.")
    ] = 20,
) -> None:
    """Measure the input path and the parts of a training iteration, side by side."""
    c = load(curriculum, overrides)
    from rich.table import Table

    from ppt.config import ConfigError
    from ppt.curriculum.run import first_training, run_curriculum
    from ppt.experiments.benchmark import (
        WHOLE,
        device_synchroniser,
        measure_input,
        measure_iteration,
    )
    from ppt.models.loaded import current_device
    from ppt.training.loop import build_worker

    if not c.stages:
        raise ConfigError("stages must have a stage to measure, got none")
    with open_runner(c, local=True) as runner:
        record = run_curriculum(c, runner, until="label")
        stage = first_training(record)
        worker = build_worker(stage, current_device())
        reader = stage.reader(worker.plan)
        found = {"input": measure_input(reader)}
        epochs = (reader.batches(epoch, 0, 1) for epoch in range(1, iterations + 1))
        batches = islice((batch for epoch in epochs for batch in epoch), iterations)
        synchronise = device_synchroniser(worker.device)
        found["iteration"] = measure_iteration(worker, batches, synchronise)
    table = Table("input path", "", title=f"{c.name}, stage {stage.name}")
    for name, value in found["input"].items():
        table.add_row(name.replace("_", " "), f"{value:,.2f}")
    out().print(table)
    table = Table("part of an iteration", "ms", "share")
    whole = found["iteration"][WHOLE]
    for name, seconds in sorted(found["iteration"].items(), key=lambda item: -item[1]):
        table.add_row(name, f"{1e3 * seconds:.1f}", f"{seconds / whole:.0%}")
    out().print(table)
    path = Path(record.folder, "benchmark.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1))
    say(f"figures: {path}")


if __name__ == "__main__":
    run_alone(main)

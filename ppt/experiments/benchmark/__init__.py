"""Benchmarks of a run's parts, each beside what it could be at best, in one call.

Ratios of what was measured side by side hold where seconds do not. Every part is a function in a
file of its own, which takes a `Setting` and returns rows. What needs Ray is passed in by the
command; without it, runners work in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ppt.config import Curriculum, Stage
from ppt.curriculum.run import first_training, run_curriculum
from ppt.experiments.benchmark.actor_scaling import measure_actor_scaling
from ppt.experiments.benchmark.cached_epoch import measure_cached_epoch
from ppt.experiments.benchmark.encode_rate import measure_encode_rate
from ppt.experiments.benchmark.first_step import measure_first_step
from ppt.experiments.benchmark.input_path import measure_input_path
from ppt.experiments.benchmark.iteration_parts import measure_iteration_parts
from ppt.experiments.benchmark.memory_growth import measure_memory_growth
from ppt.experiments.benchmark.rows import OpenRunner, Row, Setting, Stream, Workload
from ppt.experiments.benchmark.streamed_epoch import measure_streamed_epoch
from ppt.experiments.benchmark.synthetic_tables import EXPRESSIONS, SyntheticTables
from ppt.steps.local_runner import LocalRunner
from ppt.steps.progress import console
from ppt.store.nodes import Store
from ppt.training.stage import StageTraining

PARTS: dict[str, tuple[str, Callable[[Setting], list[Row]]]] = {
    "a": ("an epoch on stored features against a loop that encodes", measure_cached_epoch),
    "b": ("an epoch of a runner against a loop over tensors in memory", measure_streamed_epoch),
    "c": ("the input path against the bare copy of the features", measure_input_path),
    "d": ("encode against the bare nets", measure_encode_rate),
    "e": ("label and Select by one actor and by two", measure_actor_scaling),
    "f": ("the parts of a training iteration", measure_iteration_parts),
    "g": ("from a command to the first iteration, and between stages", measure_first_step),
    "h": ("the most memory with 1, 4 and 16 times as many pictures", measure_memory_growth),
}
"""The title and the function of each part, by its letter."""

ORDER = "habcdefg"
"""The order of the parts: the first one looks at the memory of a process that has done nothing."""

FULL_SIZE = [
    "model.clip.weights=random",
    "model.sam.weights=random",
    "model.clip.image_size=416",
]
"""What is changed of the paper's curriculum to measure its nets without their weights."""


def make_setting(
    curriculum: Curriculum,
    *,
    out: Path,
    short: bool,
    open_runner: OpenRunner,
    stream: Stream | None,
    paper: Curriculum,
) -> Setting:
    """Make the tables of the embedded world, and those of the paper's size, for all parts.

    Args:
        curriculum: the embedded world, with an empty store.
        out: the folder of the figures.
        short: whether everything is measured at the size that takes the least time.
        open_runner: opens the runner of a curriculum.
        stream: streams the batches of a reader through Ray; None where there is no Ray.
        paper: the curriculum that gives the nets of full size, see `FULL_SIZE`.
    """
    store = Store(curriculum.store)
    record = run_curriculum(curriculum, LocalRunner(store, curriculum.resources), until="label")
    tables = record.data
    stage = first_training(record)
    others = (tables["object_centric"].samples,)
    toy = Workload("toy", stage, tables["referring"].samples, others, repeats=2 if short else 5)
    on_gpu = torch.cuda.is_available()

    def full(pictures: int, buckets: int, samples: int) -> Workload:
        """Return a workload of the paper's size whose tables have so many pictures."""
        made = SyntheticTables(store, paper.model, pictures, buckets, pictures)
        of_stage = Stage(sources={"h_sem": 1, "h_ref": 1}, num_epochs=1)
        stage = StageTraining(
            name="full",
            stage=of_stage,
            training=paper.training,
            model=paper.model,
            tables=(made.make(),),
            initial=None,
            seed=0,
            resources=curriculum.resources,
        )
        return Workload("full", stage, made.samples(samples), repeats=2 if short else 5)

    pictures = 40 if short else 304
    many = replace(full(pictures, 256, 0), size="full, 256 buckets")
    if on_gpu:
        steps = replace(full(64, 16, 192), repeats=3)
    else:  # a picture takes this machine half a minute
        steps = replace(full(1, 1, 1), repeats=1).with_batches_of(EXPRESSIONS, 4)
    return Setting(
        record=record,
        toy=toy,
        full=full(pictures, 16, 0),
        full_steps=steps,
        many_buckets=many,
        short=short,
        out=out,
        open_runner=open_runner,
        stream=stream,
    )


def measure(setting: Setting, parts: str) -> list[Row]:
    """Measure some parts, given by their letters, and return the rows in the order of the parts."""
    found: dict[str, list[Row]] = {}
    for part in ORDER:
        if part not in parts:
            continue
        title, function = PARTS[part]
        started = time.monotonic()
        found[part] = function(setting)
        seconds = time.monotonic() - started
        console.print(f"[green]✓[/] ({part}) {title}: {seconds:.0f} s", highlight=False)
    return [row for part in PARTS for row in found.get(part, [])]

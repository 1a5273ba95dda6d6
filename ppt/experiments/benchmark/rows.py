"""The rows of the benchmark, and what its parts are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from ppt.batches.batch import Batch
from ppt.batches.gather import StageReader
from ppt.config import Curriculum
from ppt.steps.local_runner import LocalRunner
from ppt.steps.runner import Runner
from ppt.store.nodes import Node, Store
from ppt.tracking.record import RunRecord
from ppt.training.stage import StageTraining

RATIO = "times"
"""The unit of a ratio of two other rows."""

OpenRunner = Callable[[Curriculum], AbstractContextManager[Runner]]
"""A function that opens the runner of a curriculum, on Ray or in this process."""

Stream = Callable[[StageReader, range], Iterator[Iterator[Batch]]]
"""A function that yields for each of some epochs the batches that readers on Ray have made."""


@dataclass(frozen=True)
class Row:
    """A figure of the benchmark."""

    part: str  # "a" to "h"
    size: str  # "toy", "full", or how much there was of what was measured
    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Workload:
    """A stage whose inputs are stored, and how much of it is measured."""

    size: str  # "toy" or "full"
    stage: StageTraining
    samples: Node  # pictures to encode, among them those of the stage
    others: tuple[Node, ...] = ()  # further pictures of the stage
    iterations: int | None = None  # of an epoch; None for all of them
    repeats: int = 3  # how often something is measured; the shortest time counts

    @property
    def reader(self) -> StageReader:
        """What reads the batches of the stage."""
        return self.stage.reader(self.stage.plan())

    def chosen(self, reader: StageReader) -> range:
        """Return the iterations of an epoch that are measured."""
        every = reader.plan.num_iterations
        return range(min(every, self.iterations or every))

    def with_batches_of(self, expressions: int, max_mask_prompts: int | None) -> Workload:
        """Return the same workload with iterations of another size."""
        changes = {"global_batch_size": expressions, "max_mask_prompts": max_mask_prompts}
        training = self.stage.training.model_copy(update=changes)
        return replace(self, stage=replace(self.stage, training=training))


@dataclass(frozen=True)
class Setting:
    """What every part of the benchmark is given."""

    record: RunRecord  # of the embedded world, whose tables up to the labels are made
    toy: Workload  # its first stage
    full: Workload  # the paper's nets and sizes, with features that are random numbers
    full_steps: Workload  # the same in iterations that this machine can carry out
    many_buckets: Workload  # as `full`, with the number of buckets of the paper's curricula
    short: bool
    out: Path  # the folder of the figures
    open_runner: OpenRunner
    stream: Stream | None  # None without Ray

    @property
    def curriculum(self) -> Curriculum:
        """The curriculum of the embedded world."""
        return self.record.curriculum

    @property
    def on_ray(self) -> bool:
        """Whether there is a Ray for the parts that measure it."""
        return self.stream is not None

    def open_by_size(self, curriculum: Curriculum) -> AbstractContextManager[Runner]:
        """Open a runner for trainings of several sizes; a short benchmark has no time for Ray's."""
        if self.short:
            return nullcontext(LocalRunner(Store(curriculum.store), curriculum.resources))
        return self.open_runner(curriculum)

    def store(self, name: str) -> Store:
        """Return an empty store beside that of the embedded world."""
        return Store(f"{self.curriculum.store}/{name}")

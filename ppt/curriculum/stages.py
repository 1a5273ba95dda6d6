"""The stages of a curriculum: their order, their training data, and Select between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ppt.batches.sampler import LabelTable
from ppt.config import Curriculum, Stage
from ppt.steps.runner import Runner
from ppt.steps.select import SelectReferents
from ppt.store.nodes import Node
from ppt.tracking.record import RunRecord
from ppt.training.stage import EpochMetrics, StageTraining

OnEpoch = Callable[[EpochMetrics], None]
"""A function that is called with the losses of an epoch."""

Listening = Callable[[StageTraining], AbstractContextManager[OnEpoch]]
"""A function that opens, for the duration of a training, the `OnEpoch` of that training."""


@dataclass(frozen=True)
class TrainedStage:
    """A training that is finished."""

    stage: str  # the key in the curriculum
    training: StageTraining
    checkpoint: Node
    selected: Node | None  # the labels that Select made before this training
    h: LabelTable  # the labels of H at the time of this training


def training_runs(curriculum: Curriculum) -> Iterator[tuple[str, Stage, str]]:
    """Yield the trainings of a curriculum in their order.

    A training is given as the key of its stage, the stage and the name of the training. Each round
    of a stage is a training.
    """
    for name, stage in curriculum.stages.items():
        for round in range(1, stage.rounds + 1):
            yield name, stage, name if stage.rounds == 1 else f"{name}.{round}"


def unheard(training: StageTraining) -> AbstractContextManager[OnEpoch]:
    """A `Listening` that ignores the losses."""
    return nullcontext(lambda losses: None)


def select_referents(
    runner: Runner, record: RunRecord, before: LabelTable, checkpoint: Node
) -> Node:
    """Make the next round of H's labels, with the referents that a checkpoint selects."""
    c, round = record.curriculum, len(record.selected) + 1
    selected = runner.run(SelectReferents(before, checkpoint, c.model, c.select, round))
    record.selected.append(selected)
    return selected


def tables_of(stage: Stage, tables: dict[str, LabelTable]) -> tuple[LabelTable, ...]:
    """Return the label tables of a stage's sources, out of those of `training_tables`."""
    return tuple(
        table
        for name, table in tables.items()
        if any(source.startswith(name) for source in stage.sources)
    )

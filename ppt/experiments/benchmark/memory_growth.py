"""(h) The most memory that a run takes, with 1, 4 and 16 times as many pictures.

Every table has one bucket, so that what grows with a bucket shows as what grows with the data.
"""

from __future__ import annotations

from dataclasses import replace

from ppt.config import Curriculum
from ppt.curriculum.run import first_training, run_curriculum
from ppt.experiments.benchmark.measuring import PeakMemory
from ppt.experiments.benchmark.rows import Row, Setting

SCALES = (1, 4, 16)
"""The multiples of the data."""

FEWEST = 4
"""The fewest pictures of a data set that are multiplied."""


def measure_memory_growth(setting: Setting) -> list[Row]:
    """Measure prepare, encode, label and one epoch of the first stage, with each multiple."""
    rows = []
    for scale in SCALES:
        curriculum, pictures = _scaled(setting, scale)
        with setting.open_by_size(curriculum) as runner, PeakMemory() as memory:
            stage = first_training(run_curriculum(curriculum, runner, until="label"))
            once = stage.stage.model_copy(update={"num_epochs": 1})
            runner.train(replace(stage, stage=once), lambda losses: None)
        name = f"memory of all processes, {pictures:,} pictures to train on"
        rows.append(Row("h", f"{scale}x", name, memory.bytes / 1e9, "GB"))
    return rows


def _scaled(setting: Setting, scale: int) -> tuple[Curriculum, int]:
    """Return the curriculum with so many times an eighth of its pictures, and their number."""
    data = setting.curriculum.data
    numbers = {
        name: scale * max(getattr(data, name).num_pictures // 8, FEWEST)
        for name in ("referring", "object_centric")
    }
    scaled = {
        name: getattr(data, name).model_copy(update={"num_pictures": number})
        for name, number in numbers.items()
    }
    changes = {
        "store": setting.store(f"memory-{scale}").root,
        "num_buckets": 1,
        "data": data.model_copy(update=scaled),
    }
    return setting.curriculum.model_copy(update=changes), sum(numbers.values())

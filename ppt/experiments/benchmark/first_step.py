"""(g) The time until a training begins: after a command, after a stage, and by the data's size."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from ppt.config import Curriculum, Stage
from ppt.config.reference import curriculum_text, keys_of
from ppt.experiments.benchmark.measuring import PeakMemory, epochs_finished
from ppt.experiments.benchmark.rows import Row, Setting
from ppt.experiments.benchmark.synthetic_tables import EXPRESSIONS, SyntheticTables
from ppt.steps.progress import print_warning
from ppt.store.nodes import Store

REFCOCO = 17_000
"""The pictures of RefCOCO's training split, rounded."""

FEW = 1e-9
"""The weight of a source that is planned and of which no sample comes."""


def measure_first_step(setting: Setting) -> list[Row]:
    """Measure a command on tables that are there already, and stages of two sizes."""
    rows = []
    if find_spec("mlflow"):
        rows += _measure_command(setting)
    else:
        print_warning("MLflow is not installed: ppt train cannot be measured")
    part = 10 if setting.short else 1
    for pictures in (REFCOCO // 10 // part, REFCOCO // part):
        rows += _measure_stage(setting, pictures)
    return rows


def _measure_command(setting: Setting) -> list[Row]:
    """Measure `ppt train` with two stages of one iteration each."""
    curriculum = _of_single_iterations(setting)
    file = Path(curriculum.store, f"{curriculum.name}.yaml")
    file.write_text(curriculum_text(keys_of(curriculum)))
    command = [sys.executable, "-m", "ppt.jobs.cli", "train", str(file)]
    started = time.time()
    done = subprocess.run(
        command if setting.on_ray else [*command, "--local"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    ended = time.time()
    nodes = [n for n in Store(curriculum.store).complete_nodes() if n.kind == "checkpoints"]
    finished = (moment for node in nodes for moment in epochs_finished(node))
    first, second = sorted(moment for moment in finished if moment > started)
    return [
        Row("g", "toy", "from the command to the first iteration", first - started, "s"),
        Row("g", "toy", "from stage to stage, with Select and evaluation", second - first, "s"),
        Row("g", "toy", "from the last iteration to the end", ended - second, "s"),
    ]


def _of_single_iterations(setting: Setting) -> Curriculum:
    """Return the curriculum with two stages, each of which trains for one iteration."""
    stage = setting.toy.stage.stage
    share = 0.9 / setting.toy.reader.plan.num_iterations
    sources = {name: share * weight for name, weight in stage.sources.items()}
    first = stage.model_copy(update={"sources": sources, "num_epochs": 1})
    second = first.model_copy(update={"select": True})
    changes = {"name": "first-step", "stages": {"first": first, "second": second}}
    return setting.curriculum.model_copy(update=changes)


def _measure_stage(setting: Setting, num_pictures: int) -> list[Row]:
    """Measure a stage that plans pictures of a number and trains for one iteration."""
    work = setting.toy
    batch_size = work.stage.training.global_batch_size
    readable = -(-batch_size // EXPRESSIONS)
    store = setting.store(f"planned-{num_pictures}")
    buckets = setting.curriculum.num_buckets
    tables = SyntheticTables(store, work.stage.model, num_pictures, buckets, readable).make()
    wanted = batch_size / (readable * EXPRESSIONS)
    of_stage = Stage(sources={"h_sem": wanted, "h_ref": FEW}, num_epochs=1)
    stage = replace(work.stage, name="planned", stage=of_stage, tables=(tables,))
    curriculum = setting.curriculum.model_copy(update={"store": store.root})
    with setting.open_by_size(curriculum) as runner, PeakMemory() as memory:
        started = time.time()
        node = runner.train(stage, lambda losses: None)
    size = f"{num_pictures:,} pictures"
    first = epochs_finished(node)[0] - started
    return [
        Row("g", size, "from a stage's start to its first iteration", first, "s"),
        Row("g", size, "memory of all processes", memory.bytes / 1e9, "GB"),
    ]

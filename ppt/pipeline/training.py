"""train: one Ray Train run for a stage. The step itself is in `ppt.engine`.

Each worker streams its own part of the plan through Ray Data (`stream`), so a run that goes on
starts at the right epoch with any number of workers, and no order depends on how Ray splits a
dataset. A checkpoint stands after every epoch; what Ray restores after a lost worker or a killed
driver is the latest of them.
"""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from ppt.checkpoint import METADATA, load_checkpoint, save_checkpoint
from ppt.config import Model, Resources, Stage, Training
from ppt.data.batch import Batch
from ppt.data.collate import collate
from ppt.engine import train_one_epoch
from ppt.models.criterion import build_criterion
from ppt.models.point_generator import PointGenerator
from ppt.models.point_prompting import PointPrompting
from ppt.pipeline.claims import claim
from ppt.pipeline.features import encoder_spec
from ppt.pipeline.mixture import LabelTable, Plan
from ppt.pipeline.models import build_point_prompting
from ppt.pipeline.monitor import EpochMetrics, watch
from ppt.pipeline.stream import stream_epochs
from ppt.schedule import build_optimizer, build_schedule
from ppt.store import Node, Store, digest_of


@dataclass(frozen=True)
class StageRun:
    """All that the workers need for one stage."""

    name: str
    stage: Stage
    training: Training
    model: Model
    tables: tuple[LabelTable, ...]
    initial: Node | None  # the checkpoint before; None: the generator's seeded initialisation
    seed: int
    resources: Resources

    def plan(self) -> Plan:
        return Plan(
            self.tables,
            self.stage.sources,
            stage=self.name,
            seed=self.seed,
            batch_size=self.training.global_batch_size,
        )

    def checkpoint_node(self, store: Store) -> Node:
        """Where the trained stage stands: named by all that its numbers depend on."""
        spec = {
            "stage": self.name,
            "sources": self.stage.sources,
            "num_epochs": self.stage.num_epochs,
            "learning_rate": self.stage.learning_rate or self.training.learning_rate,
            "training": self.training.model_dump(exclude={"learning_rate"}),
            "point_generator": self.model.point_generator.model_dump(),
            "encoders": encoder_spec(self.model),
            "seed": self.seed,
            "num_workers": self.resources.num_workers,  # orders the sums of a step
        }
        parents = {f"labels.{i}": table.labels for i, table in enumerate(self.tables)}
        parents |= {f"features.{i}": table.features for i, table in enumerate(self.tables)}
        if self.initial is not None:
            parents["initial"] = self.initial
        return store.node("checkpoints", spec, parents)


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Ray Train's loop: restore, stream, one `train_one_epoch` an epoch, report a checkpoint."""
    run: StageRun = config["run"]
    rank = ray.train.get_context().get_world_rank()
    monitor = config["monitor"] if rank == 0 else None
    device = get_device()
    model = build_point_prompting(run.model, run.seed, str(device))
    generator = model.generator
    optimizer = build_optimizer(generator, run.stage.learning_rate or run.training.learning_rate)
    history = _restore(run, generator, optimizer)
    model.generator = cast(PointGenerator, prepare_model(generator))
    criterion = build_criterion(run.training)
    plan = run.plan()
    scheduler = build_schedule(
        optimizer,
        run.training.schedule,
        num_steps=run.stage.num_epochs * plan.num_steps,
        done=len(history) * plan.num_steps,
    )
    if monitor:
        ray.get(monitor.restart.remote(history, len(history) * plan.num_steps))
    for epoch, batches in _epochs(run, plan, len(history), model):
        losses = train_one_epoch(
            model,
            criterion,
            batches,
            optimizer,
            device=device,
            max_norm=run.training.max_norm,
            scheduler=scheduler,
            on_step=(lambda *_: monitor.advance.remote()) if monitor else None,
        )
        history.append({"epoch": epoch, **losses})
        if rank == 0:
            log_epoch(config["node"], epoch)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                save_checkpoint(folder, generator, optimizer, {"history": history})
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report(
                losses, checkpoint=checkpoint, checkpoint_dir_name=f"epoch-{epoch:04d}"
            )
        if monitor:
            ray.get(monitor.finish_epoch.remote(history[-1]))


def log_epoch(node: Node, epoch: int) -> None:
    """Leave a file that says this epoch was trained, and when: twice trained, two files."""
    node.write_json(f"epoch-{epoch:04d}-{uuid.uuid4().hex[:8]}.json", {"finished": time.time()})


def epochs_trained(node: Node, since: float = 0.0) -> int:
    """How many epochs of a checkpoint were trained after `since` (Unix time), by those files."""
    fs = node.store.fs
    fs.invalidate_cache(node.folder)
    if not fs.exists(node.folder):
        return 0
    names = [path.rsplit("/", 1)[-1] for path in fs.ls(node.folder, detail=False)]
    logs = [name for name in names if name.startswith("epoch-")]
    return sum(node.read_json(name)["finished"] >= since for name in logs)


def _restore(run: StageRun, generator, optimizer) -> list[EpochMetrics]:
    """Load what this stage has reached, or else what it starts from; returns its history."""
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            return load_checkpoint(folder, generator, optimizer)["history"]
    if run.initial is not None:
        load_checkpoint(run.initial.local_folder(), generator)
    return []


def _epochs(
    run: StageRun, plan: Plan, done: int, model: PointPrompting
) -> Iterator[tuple[int, Iterator[Batch]]]:
    """(epoch, its batches) for the epochs that are left; epochs count from 1."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    streams = stream_epochs(
        plan,
        run.tables,
        epochs=range(done + 1, run.stage.num_epochs + 1),
        rank=rank,
        world_size=world_size,
        cpus_per_reader=run.resources.cpus_per_reader,
    )
    entropy = int(digest_of([run.seed, run.name]), 16)
    for epoch, tables in enumerate(streams, done + 1):
        rng = np.random.default_rng([entropy, epoch, rank])  # point targets are drawn anew
        yield (
            epoch,
            (
                collate(
                    table,
                    num_points=run.model.point_generator.num_points,
                    low_res_size=model.decoder.low_res_size,
                    image_size=model.decoder.image_size,
                    rng=rng,
                )
                for table in tables
            ),
        )


# ---------------------------------------------------------------- driver


def train_stage(
    run: StageRun, node: Node, *, title: str, on_epoch: Callable[[EpochMetrics], None]
) -> Node:
    """Train a stage into the checkpoint `node`, or go on where an interrupted run stood.

    Where another run trains it, this waits and uses what comes of it. `on_epoch` is called with the
    losses of each epoch, also of those restored or already done.
    """
    with claim(node) as ours:
        if ours:
            _train(run, node, title, on_epoch)
    if not ours:
        for metrics in node.manifest()["history"]:
            on_epoch(metrics)
    return node


def _train(run: StageRun, node: Node, title: str, on_epoch: Callable[[EpochMetrics], None]) -> None:
    storage, started = f"{node.store.path}/ray-train", time.monotonic()
    with watch(title, run.plan().num_steps * run.stage.num_epochs, on_epoch) as monitor:
        result = TorchTrainer(
            train_loop_per_worker,
            train_loop_config={"run": run, "node": node, "monitor": monitor},
            scaling_config=ScalingConfig(
                num_workers=cast(Any, run.resources.num_workers),  # its type hides the range
                use_gpu=run.resources.gpus_per_worker > 0,
                resources_per_worker=_resources_per_worker(run.resources),
            ),
            run_config=RunConfig(
                name=node.digest,  # the same name goes on where it stood: never name two runs alike
                storage_path=storage,
                storage_filesystem=node.store.arrow_filesystem(),
                failure_config=FailureConfig(max_failures=run.resources.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        ).fit()
    assert result.checkpoint is not None  # every epoch leaves one
    with result.checkpoint.as_directory() as folder:
        for path in Path(folder).iterdir():
            node.write_bytes(path.name, path.read_bytes())
        history = json.loads((Path(folder) / METADATA).read_text())["history"]
    seconds = round(time.monotonic() - started, 1)
    # The digest covers the encoders' fingerprints; how to build them again stands here.
    model = run.model.model_dump(mode="json")
    node.write_manifest(history=history, seconds=seconds, model=model)
    node.store.fs.rm(f"{storage}/{node.digest}", recursive=True)


def _resources_per_worker(resources: Resources) -> dict[str, float]:
    asked = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker > 0:
        asked["GPU"] = resources.gpus_per_worker
    return asked

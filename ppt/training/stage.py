"""The description of a stage's training: its inputs, and the node of its checkpoint.

A runner carries the training out with `ppt.training.loop.StageWorker`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import uuid
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppt.batches.gather import StageReader
from ppt.batches.sampler import LabelTable, Plan
from ppt.config import Model, Resources, Stage, Training
from ppt.config.stage_kinds import STAGE_KINDS
from ppt.models.loaded import encoder_fingerprints
from ppt.store.checkpoint_files import METADATA
from ppt.store.checksums import CHECKSUMS, check_folder
from ppt.store.lookup import text_encoding
from ppt.store.nodes import Node, Store, digest_of

if TYPE_CHECKING:
    from ppt.training.loop import StageWorker

VERSION = 10
"""The version of the training code, which is part of the digest of every checkpoint.

Raise it when the result of training changes for all kinds of stages, for example because of the
losses, the matching, the optimiser or the order of the batches. Checkpoints of the former version
are then not reused. The code of a single kind has a version of its own, `StageWorker.version`.
"""

RAY_TRAIN, LOCAL_TRAIN = "ray-train", "local-train"
"""The folders in which each runner keeps the checkpoints of unfinished trainings, by digest."""

EpochMetrics = dict[str, float]
"""The number of an epoch, counted from 1, under the key `epoch`, and figures of its training.

What is stored with a checkpoint are only figures that are equal when the training is repeated.
"""


@dataclass(frozen=True)
class StageTraining:
    """All inputs of the training of a stage, or of one round of a stage."""

    name: str
    stage: Stage
    training: Training
    model: Model
    tables: tuple[LabelTable, ...]
    initial: Node | None  # the checkpoint to start from; None for parameters drawn from the seed
    seed: int
    resources: Resources

    @property
    def title(self) -> str:
        """The name of the training in progress reports."""
        return f"train {self.name}"

    @property
    def learning_rate(self) -> float:
        """The learning rate of the stage, by default that of the whole training."""
        return self.stage.learning_rate or self.training.learning_rate

    def plan(self) -> Plan:
        """Return the plan of the stage's samples, which is made once."""
        return self._plan

    @cached_property
    def _plan(self) -> Plan:
        return Plan(
            self.tables,
            self.stage.sources,
            stage=self.name,
            seed=self.seed,
            batch_size=self.training.global_batch_size,
        )

    def reader(self, plan: Plan) -> StageReader:
        """Return what reads the batches of a plan of this stage."""
        return StageReader(plan, self.tables, self.model.point_generator.num_points)

    def _training_spec(self) -> dict[str, Any]:
        """The fields that all stages share, without the losses that have no weight."""
        spec = self.training.model_dump(exclude={"learning_rate"})
        spec["loss_weights"] = {name: w for name, w in spec["loss_weights"].items() if w}
        return spec

    def node(self, store: Store) -> Node:
        """Return the node of the trained stage; its digest covers all inputs of the result."""
        spec = {
            "stage": self.name,
            "kind": self.stage.kind,
            "kind_version": worker_class(self.stage.kind).version,
            "sources": self.stage.sources,
            "num_epochs": self.stage.num_epochs,
            "learning_rate": self.learning_rate,
            "training": self._training_spec(),
            "point_generator": self.model.point_generator.model_dump(),
            "encoders": encoder_fingerprints(self.model),
            "words": [text_encoding(table.words) for table in self.tables],
            "seed": self.seed,
            "num_workers": self.resources.num_workers,  # determines the order of summation
        }
        parents = {f"labels.{i}": table.labels for i, table in enumerate(self.tables)}
        parents |= {f"features.{i}": table.features for i, table in enumerate(self.tables)}
        if self.initial is not None:
            parents["initial"] = self.initial
        return store.node("checkpoints", spec, parents, version=VERSION)

    def discard_unfinished(self, store: Store) -> None:
        """Delete what an interrupted training of this stage has left to be continued."""
        node = self.node(store)
        folder = f"{store.path}/{RAY_TRAIN}/{node.digest}"
        if store.fs.exists(folder):
            store.fs.rm(folder, recursive=True)
        shutil.rmtree(local_folder(node), ignore_errors=True)

    def publish(self, node: Node, checkpoint: str | Path, seconds: float) -> None:
        """Copy the last checkpoint to the node and write its manifest, which makes it complete.

        Args:
            node: the node of the trained stage.
            checkpoint: the local folder of the last epoch's checkpoint.
            seconds: the duration of the training.
        """
        check_folder(Path(checkpoint))
        node.clean()
        files = [path for path in Path(checkpoint).iterdir() if path.name != CHECKSUMS]
        checksums = {path.name: node.write_bytes(path.name, path.read_bytes()) for path in files}
        history = history_of(checkpoint)
        # The digest covers only the encoders' fingerprints; the manifest says how to build them.
        model = self.model.model_dump(mode="json")
        node.write_manifest(
            history=history, seconds=round(seconds, 1), model=model, checksums=checksums
        )


def worker_class(kind: str) -> type[StageWorker]:
    """Import and return the class whose objects train stages of a kind."""
    module, _, class_name = STAGE_KINDS[kind].partition(":")
    return getattr(import_module(module), class_name)


def history_of(checkpoint: str | Path) -> list[EpochMetrics]:
    """Return the figures of the epochs that the checkpoint in a folder was trained for."""
    return json.loads((Path(checkpoint) / METADATA).read_text())["history"]


def local_folder(node: Node) -> Path:
    """Return the folder in which `LocalRunner` keeps the last epoch of an unfinished training."""
    if node.store.is_local:
        return Path(node.store.path, LOCAL_TRAIN, node.digest)
    return Path(tempfile.gettempdir(), "ppt-train", digest_of(node.store.root), node.digest)


# ---------------------------------------------------------------- a record of trained epochs


def log_epoch(node: Node, epoch: int) -> None:
    """Write a file that records when an epoch was trained, one for each time it was trained."""
    node.write_json(f"epoch-{epoch:04d}-{uuid.uuid4().hex[:8]}.json", {"finished": time.time()})


def epochs_trained(node: Node, since: float = 0.0) -> int:
    """Return the number of epochs of a checkpoint trained since `since`, a Unix time in seconds.

    The number is taken from the files of `log_epoch`.
    """
    fs = node.store.fs
    fs.invalidate_cache(node.folder)
    if not fs.exists(node.folder):
        return 0
    names = [path.rsplit("/", 1)[-1] for path in fs.ls(node.folder, detail=False)]
    logs = [name for name in names if name.startswith("epoch-")]
    return sum(node.read_json(name)["finished"] >= since for name in logs)

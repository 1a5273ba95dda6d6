"""The description of a stage's training: its inputs, and the nodes of its checkpoints.

A runner carries the training out with `ppt.training.loop.StageWorker`. The checkpoint of each epoch
is kept until the next one is complete, and that of the last epoch is published as the stage's.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
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
from ppt.store.lookup import text_encoding
from ppt.store.nodes import Node, Store

if TYPE_CHECKING:
    from ppt.training.loop import StageWorker

VERSION = 10
"""The version of the training code, which is part of the digest of every checkpoint.

Raise it when the result of training changes for all kinds of stages, for example because of the
losses, the matching, the optimiser or the order of the batches. Checkpoints of the former version
are then not reused. The code of a single kind has a version of its own, `StageWorker.version`.
"""

EPOCHS = "epochs"
"""The kind of the nodes that hold the checkpoint of the last epoch of unfinished trainings.

Both runners keep it there, so that each can go on with a training of the other.
"""

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
        """Return the fields that all stages share.

        Losses without a weight are left out, and so is the optimiser if it is Adam: the digests of
        checkpoints from before there was a choice are then the same.
        """
        spec = self.training.model_dump(exclude={"learning_rate"})
        spec["loss_weights"] = {name: w for name, w in spec["loss_weights"].items() if w}
        if spec["optimizer"] == "adam":
            del spec["optimizer"]
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

    def last_epoch(self, store: Store) -> Node | None:
        """Return the checkpoint from which an interrupted training goes on; None if there is none.

        Raises DamagedFile if one of its files is missing or has another size.
        """
        training = self.node(store)
        for epoch in range(self.stage.num_epochs, 0, -1):
            if (node := epoch_node(training, epoch)).is_complete():
                return node
        return None

    @contextmanager
    def keeping_epochs(
        self, store: Store, last: Node | None
    ) -> Iterator[Callable[[int, Mapping[str, bytes]], None]]:
        """Yield a function that keeps the checkpoint of an epoch, given its number and its files.

        A thread writes it while the next epoch is trained; whatever that raises is raised by the
        next call, or at the end of the block. All is written when the block has ended. `last` is
        the checkpoint from which the training goes on, as `last_epoch` has returned it.
        """
        began = time.monotonic()
        before = last.manifest()["seconds"] if last else 0.0
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint") as thread:
            writing: Future[None] | None = None

            def keep(epoch: int, files: Mapping[str, bytes]) -> None:
                nonlocal writing
                seconds = before + time.monotonic() - began
                if writing is not None:
                    writing.result()
                writing = thread.submit(self._keep_epoch, store, epoch, files, seconds)

            yield keep
            if writing is not None:
                writing.result()

    def _keep_epoch(
        self, store: Store, epoch: int, files: Mapping[str, bytes], seconds: float
    ) -> None:
        """Write the checkpoint of an epoch and its record, then remove the one before.

        `seconds` is the duration of the training so far.
        """
        training = self.node(store)
        node = epoch_node(training, epoch)
        node.clean()
        checksums = {name: node.write_bytes(name, data) for name, data in files.items()}
        node.write_manifest(checksums=checksums, seconds=round(seconds, 1))
        log_epoch(training, epoch)
        if epoch > 1:
            epoch_node(training, epoch - 1).remove()

    def discard_unfinished(self, store: Store) -> None:
        """Delete what an interrupted training of this stage has left to be continued."""
        training = self.node(store)
        for epoch in range(1, self.stage.num_epochs + 1):
            epoch_node(training, epoch).remove()

    def publish(self, store: Store) -> None:
        """Copy the checkpoint of the last epoch to the node of the stage, which is then complete.

        The node's `seconds` are those that the training took, however often it was interrupted.
        """
        node = self.node(store)
        last = epoch_node(node, self.stage.num_epochs)
        folder = Path(last.local_folder())
        node.clean()
        kept = last.manifest()
        checksums = {
            name: node.write_bytes(name, (folder / name).read_bytes()) for name in kept["checksums"]
        }
        history = json.loads((folder / METADATA).read_text())["history"]
        # The digest covers only the encoders' fingerprints; the manifest says how to build them.
        model = self.model.model_dump(mode="json")
        node.write_manifest(
            history=history, seconds=kept["seconds"], model=model, checksums=checksums
        )
        self.discard_unfinished(store)  # also an epoch that a crash has left beside a later one


def epoch_node(training: Node, epoch: int) -> Node:
    """Return the node of the checkpoint after an epoch, from 1, of the training of a stage."""
    spec = {"stage": training.made_from["spec"]["stage"], "epoch": epoch}
    return training.store.node(EPOCHS, spec, {"training": training})


def worker_class(kind: str) -> type[StageWorker]:
    """Import and return the class whose objects train stages of a kind."""
    module, _, class_name = STAGE_KINDS[kind].partition(":")
    return getattr(import_module(module), class_name)


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

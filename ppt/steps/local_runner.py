"""`LocalRunner`, which runs a whole curriculum in this process, without Ray.

The digests are those of a run on Ray and, with one worker, the stored numbers are equal bit by bit.
For this, a step has the threads of `resources.cpus_per_actor` and a training those of
`resources.cpus_per_worker`, as on Ray (see `use_threads`). Each uses a GPU if
`resources.gpus_per_actor` or `resources.gpus_per_worker` asks for one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import zip_longest

import torch

from ppt.batches.ahead import for_device
from ppt.config import ConfigError, Resources
from ppt.models.loaded import threads, use_device
from ppt.steps.progress import (
    prepare_folder,
    print_epoch,
    print_resumed,
    print_waiting,
    progress_bar,
)
from ppt.steps.step import Step
from ppt.store.locks import locked
from ppt.store.nodes import Node, Store
from ppt.training.loop import build_worker
from ppt.training.stage import EpochMetrics, StageTraining


class LocalRunner:
    """A runner that carries out steps and trainings one after another, in this process."""

    def __init__(self, store: Store, resources: Resources) -> None:
        self.store = store
        self.resources = resources

    def run(self, step: Step) -> Node:
        node = step.node(self.store)
        if not node.is_complete():
            with locked(self.store, node.digest, partial(print_waiting, step.title)):
                if not node.is_complete():  # another run may have made it meanwhile
                    self._make(step, node)
        return node

    def _make(self, step: Step, node: Node) -> None:
        use_device(_device("gpus_per_actor", self.resources.gpus_per_actor))
        todo = prepare_folder(node)
        total = step.total() if len(todo) == node.num_buckets else None
        with progress_bar(step.title, total) as advance, threads(self.resources.cpus_per_actor):
            for bucket, following in zip_longest(todo, todo[1:]):
                step.expect(following)
                output = step(bucket)
                node.write_bucket(bucket, output)
                advance(next((count.into for count in output.counts.values()), 0))
        node.write_manifest(**step.facts())

    def train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        node = stage.node(self.store)
        if not node.is_complete():
            check_training(self.resources)
            with locked(self.store, node.digest, partial(print_waiting, stage.title)):
                if not node.is_complete():
                    with threads(self.resources.cpus_per_worker):
                        self._train(stage, on_epoch)
                    return node
        for metrics in node.manifest()["history"]:
            on_epoch(metrics)
        return node

    def _train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> None:
        last = stage.last_epoch(self.store)
        device = _device("gpus_per_worker", self.resources.gpus_per_worker)
        worker = build_worker(stage, device, last.local_folder() if last else None)
        if worker.history:
            print_resumed(stage.title, len(worker.history))
        for metrics in worker.history:
            on_epoch(metrics)
        reader = stage.reader(worker.plan)
        total = stage.stage.num_epochs * worker.plan.num_iterations
        with (
            progress_bar(stage.title, total, "iterations") as advance,
            stage.keeping_epochs(self.store, last) as keep,
        ):
            advance(worker.num_iterations, is_new=False)
            for epoch in worker.epochs_left:
                batches = for_device(reader.batches(epoch, rank=0, world_size=1), device)
                losses = worker.train_epoch(epoch, batches, on_iteration=lambda: advance(1))
                keep(epoch, worker.checkpoint())
                print_epoch(stage.title, epoch, losses["loss"])
                on_epoch(losses)
        stage.publish(self.store)


def check_training(resources: Resources) -> None:
    """Raise ConfigError if a training asks for more than the one worker, or for a GPU too many."""
    _device("gpus_per_worker", resources.gpus_per_worker)
    if resources.fewest_workers > 1:
        raise ConfigError(
            "resources.num_workers must be 1 to train in a local run, which has one worker, "
            f"got {resources.num_workers}: set resources.num_workers=1 or train on Ray"
        )


def _device(key: str, gpus: float) -> str:
    """Return "cuda" or "cpu", as a key of the resources asks. Raises ConfigError without a GPU."""
    if gpus and not torch.cuda.is_available():
        raise ConfigError(
            f"resources.{key} asks for a GPU, got {gpus:g}, and torch finds none on this machine: "
            f"set resources.{key}=0 to run on the CPU"
        )
    return "cuda" if gpus else "cpu"

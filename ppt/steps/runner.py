"""Runners, which carry out the steps and trainings of a run.

The driver (`ppt.curriculum`) knows only the protocol `Runner`. `LocalRunner` works in this process
and `ppt.distributed.ray_runner.RayRunner` on a Ray cluster; both give the same digests.
`OnlyComplete` and `Again` serve commands that train nothing, or that make something anew, and
`Repairing` makes anew what is damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ppt.batches.gather import labels_of
from ppt.config import ConfigError
from ppt.steps.inference import trained
from ppt.steps.progress import print_repair
from ppt.steps.step import Step
from ppt.store.checksums import DamagedFile
from ppt.store.lookup import mapped, row_of
from ppt.store.nodes import Node, Store
from ppt.training.stage import EpochMetrics, StageTraining


class Runner(Protocol):
    """An object that makes what is not in the store yet, and returns where it is stored."""

    store: Store

    def run(self, step: Step) -> Node:
        """Make the missing buckets of a step's table, and return the complete node."""

    def train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        """Train a stage or continue an interrupted training, and return the checkpoint.

        `on_epoch` is called once with the losses of each epoch, even if the epoch was trained
        earlier.
        """


class OnlyComplete:
    """A runner that makes nothing: it raises ConfigError for what is not in the store.

    It serves commands that must not train, where a forgotten override would start hours of work.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def run(self, step: Step) -> Node:
        node = step.node(self.store)
        if not node.is_complete():
            for damage in node.damage():
                raise damage
            raise ConfigError(
                f"this curriculum is not trained ({step.title!r} is not done): run `ppt train` "
                "with it, or give all overrides that it was trained with"
            )
        return node

    def train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        node = stage.node(self.store)
        if not node.is_complete():
            raise ConfigError(
                f"stage {stage.name!r} is not trained as this curriculum and this version of ppt "
                "say: run `ppt train` with it, or give all overrides that it was trained with"
            )
        for metrics in node.manifest()["history"]:
            on_epoch(metrics)
        return node


COMMANDS = ("prepare", "encode", "label", "synthesise", "select", "evaluate")
"""The values that `Step.command` has in the run of a curriculum."""


class Again:
    """A runner that makes one step or stage, and all that was made from it, anew.

    It leaves everything else to `runner`. `name` is a stage, a round of a stage or one of
    `COMMANDS`.
    """

    def __init__(self, runner: Runner, name: str) -> None:
        self.runner = runner
        self.store = runner.store
        self.name = name
        self._anew: set[str] = set()  # digests of the nodes that were removed

    def run(self, step: Step) -> Node:
        self._forget(step.node(self.store), self.name == step.command)
        return self.runner.run(step)

    def train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        named = self.name in (stage.name, stage.name.rpartition(".")[0])
        if self._forget(stage.node(self.store), named):
            stage.discard_unfinished(self.store)
        return self.runner.train(stage, on_epoch)

    def _forget(self, node: Node, named: bool) -> bool:
        """Remove a node that is to be made anew, after all nodes that were made from it.

        This happens once for each node; returns whether it did. Because of the order, an
        interruption leaves no outdated node that looks complete.
        """
        follows = not self._anew.isdisjoint(node.made_from["parents"].values())
        if not (named or follows) or node.digest in self._anew:
            return False
        for other in reversed(descendants(self.store, node.digest)):
            other.remove()
        node.remove()
        forget_read()
        self._anew.add(node.digest)
        return True


class Repairing:
    """A runner that makes a damaged bucket anew when a step or a training comes upon it.

    The bucket's table must be one that this runner has made or found; other damage is raised. The
    work itself is left to `runner`.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.store = runner.store
        self._steps: dict[str, Step] = {}  # by the digests of their nodes
        self._repaired: set[tuple[str, int]] = set()

    def run(self, step: Step) -> Node:
        self._steps[step.node(self.store).digest] = step
        return self._retried(lambda: self.runner.run(step))

    def train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        told = set[float]()

        def once(losses: EpochMetrics) -> None:
            if losses["epoch"] not in told:
                told.add(losses["epoch"])
                on_epoch(losses)

        return self._retried(lambda: self.runner.train(stage, once))

    def _retried(self, make: Callable[[], Node]) -> Node:
        while True:
            try:
                return make()
            except DamagedFile as damage:
                step = self._steps.get(damage.digest or "")
                if step is None or damage.bucket is None:
                    raise
                if (bucket := (step.node(self.store).digest, damage.bucket)) in self._repaired:
                    raise
                self._repaired.add(bucket)
                print_repair(damage)
                step.node(self.store).discard(damage.bucket)
                forget_read()
                self.run(step)


def forget_read() -> None:
    """Forget what this process has read of the store."""
    for cached in (mapped, row_of, labels_of, trained):
        cached.cache_clear()


def descendants(store: Store, digest: str) -> list[Node]:
    """Return the complete nodes that were made from a node, at any depth, the nearest first."""
    waiting, found = store.complete_nodes(), list[Node]()
    reached, grown = {digest}, True
    while grown:
        nearest = [n for n in waiting if not reached.isdisjoint(n.made_from["parents"].values())]
        waiting = [n for n in waiting if n not in nearest]
        reached |= {node.digest for node in nearest}
        found += nearest
        grown = bool(nearest)
    return found

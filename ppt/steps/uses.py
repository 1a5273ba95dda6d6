"""What each run uses of a store, noted in the run's folder.

STORE/NAME/uses/ has a file for each node of the run, named by the node's digest. It is written
before the node is made, so that `ppt gc` knows what an unfinished run needs.
"""

from __future__ import annotations

from collections.abc import Callable

from ppt.steps.runner import Runner
from ppt.steps.step import Step
from ppt.store.nodes import Node, Store
from ppt.tracking.folder import USES
from ppt.training.stage import EpochMetrics, StageTraining


class Noting:
    """A runner that notes what a run uses, and leaves the work to another runner."""

    def __init__(self, runner: Runner, name: str) -> None:
        """`name` is that of the run."""
        self.runner = runner
        self.store = runner.store
        self._folder = f"{self.store.path}/{name}/{USES}"
        self._noted = set(_digests_in(self.store, self._folder))

    def run(self, step: Step) -> Node:
        self._note(step.node(self.store))
        return self.runner.run(step)

    def train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        self._note(stage.node(self.store))
        return self.runner.train(stage, on_epoch)

    def _note(self, node: Node) -> None:
        if node.digest not in self._noted:
            self.store.fs.makedirs(self._folder, exist_ok=True)
            self.store.fs.pipe_file(f"{self._folder}/{node.digest}", node.kind.encode())
            self._noted.add(node.digest)


def uses_of(store: Store, name: str) -> list[str]:
    """Return the digests that a run has noted; a run of an earlier version has noted none."""
    return _digests_in(store, f"{store.path}/{name}/{USES}")


def _digests_in(store: Store, folder: str) -> list[str]:
    store.fs.invalidate_cache(folder)
    if not store.fs.isdir(folder):
        return []
    return [path.rsplit("/", 1)[-1] for path in store.fs.ls(folder, detail=False)]

"""What each run uses of a store, noted in the store.

STORE/uses/NAME/ has a file for each node of the run, named by the node's digest. It is written
before the node is made, so that `ppt gc` knows what an unfinished run needs, and it stays when the
run's folder is moved away.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import TracebackType

from ppt.steps.progress import print_in_use, print_warning
from ppt.steps.runner import Runner
from ppt.steps.step import Step
from ppt.store.locks import in_use
from ppt.store.nodes import Node, Store
from ppt.training.stage import EpochMetrics, StageTraining

USES = "uses"
"""The folder of a store with the notes of its runs."""


class Noting:
    """A runner that notes what a run uses, and leaves the work to another runner.

    It is a context manager: during the block nobody removes anything from the store or, with
    `alone`, nobody else uses it. In a store behind a URL others can do both.
    """

    def __init__(self, runner: Runner, name: str, *, alone: bool = False) -> None:
        """`name` is that of the run; `alone` is for a run that makes something anew."""
        self.runner = runner
        self.store = runner.store
        self.alone = alone
        self._folder = f"{self.store.path}/{USES}/{name}"
        self._noted: set[str] = set()
        self._held = ExitStack()

    def __enter__(self) -> Noting:
        if self.alone and not self.store.is_local:
            print_warning(
                f"{self.store.root} is behind a URL, where it cannot be seen whether another "
                "command is at work: what is made anew would be gone for that"
            )
        self._held.enter_context(
            in_use(self.store, partial(print_in_use, self.store), alone=self.alone)
        )
        self._noted = set(_names_in(self.store, self._folder))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.close()

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


def runs_noted(store: Store) -> list[str]:
    """Return the names of the runs that have noted what they use."""
    return _names_in(store, f"{store.path}/{USES}")


def uses_of(store: Store, name: str) -> list[str]:
    """Return the digests that a run has noted; a run of an earlier version has noted none."""
    return _names_in(store, f"{store.path}/{USES}/{name}")


def forget(store: Store, name: str) -> None:
    """Remove what a run has noted."""
    store.fs.rm(f"{store.path}/{USES}/{name}", recursive=True)


def _names_in(store: Store, folder: str) -> list[str]:
    store.fs.invalidate_cache(folder)
    if not store.fs.isdir(folder):
        return []
    return [path.rsplit("/", 1)[-1] for path in store.fs.ls(folder, detail=False)]

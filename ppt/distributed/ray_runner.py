"""`RayRunner`, which carries out steps by a pool of actors and trainings by Ray Train.

Both the pool and the training workers stay for the next step or stage, where the cluster has room
for both at once; otherwise each ends before the other starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from ppt.config import Curriculum, Resources
from ppt.distributed.actors import ActorPool
from ppt.distributed.claims import claim
from ppt.distributed.cluster import connected, fits_beside_training
from ppt.distributed.worker_group import WorkerGroup
from ppt.steps.step import Step
from ppt.store.nodes import Node, Store
from ppt.training.stage import EpochMetrics, StageTraining


class RayRunner:
    """A runner that carries out the steps and trainings of one run on a Ray cluster.

    The runner connects to the cluster when there is something to make. If another run on the same
    cluster is making a node, this runner waits and uses the result.
    """

    def __init__(
        self, store: Store, resources: Resources, *, runs: int = 1, trains: bool = True
    ) -> None:
        """Connect to nothing yet.

        Args:
            store: the store of the run.
            resources: what the run asks for.
            runs: the number of runs that share the cluster at the same time.
            trains: whether the runner will train; the cluster must have room for it from the start.
        """
        self.store = store
        self.resources = resources
        self.runs = runs
        self.trains = trains
        self.pool = ActorPool(resources)
        self.workers = WorkerGroup(resources)
        self._connection = ExitStack()
        self._is_connected = False

    def run(self, step: Step) -> Node:
        node = step.node(self.store)
        if not node.is_complete():
            self._connect()
            if not self._fits():
                self.workers.close()
            with claim(node, step.title, self._release) as ours:
                if ours:
                    self.pool.make(node, step)
        return node

    def train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        node = stage.node(self.store)
        ours = False
        if not node.is_complete():
            assert self.trains
            self._connect()
            if not self._fits():
                self.pool.close()
            with claim(node, stage.title, self._release) as ours:
                if ours:
                    self.workers.train(stage, self.store, on_epoch)
                    stage.publish(self.store)
        if not ours:
            for metrics in node.manifest()["history"]:
                on_epoch(metrics)
        return node

    def _fits(self) -> bool:
        return fits_beside_training(self.resources, self.runs)

    def _release(self) -> None:
        """End what other runs may need before they can make what this one waits for."""
        self.pool.close()
        self.workers.close()

    def _connect(self) -> None:
        if not self._is_connected:
            self._connection.enter_context(connected(self.resources, trains=self.trains))
            self._is_connected = True

    def close(self) -> None:
        """End the actors and the workers, and disconnect from the cluster."""
        self._release()
        self._connection.close()
        self._is_connected = False


@contextmanager
def ray_runner(
    curriculum: Curriculum, *, runs: int = 1, trains: bool = True
) -> Iterator[RayRunner]:
    """Open the runner of one curriculum; it is closed at the end of the block."""
    store = Store(curriculum.store)
    runner = RayRunner(store, curriculum.resources, runs=runs, trains=trains)
    try:
        yield runner
    finally:
        runner.close()

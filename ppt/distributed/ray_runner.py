"""`RayRunner`, which carries out steps by a pool of actors and trainings by Ray Train.

In a training each worker streams its own part of the plan through Ray Data (`stream`). What takes
long in a new process is to import what it needs. A worker therefore starts its readers first, and
imports the training while they start; Ray Train's controller imports no more than Ray's own
modules, because it does not get to see what is trained. A training
that is continued therefore starts at the right epoch with any number of workers, and no order
depends on how Ray splits a data set. A checkpoint is kept after every epoch; after the loss of a
worker or of the driver, Ray restores the latest one. The iteration itself is in
`ppt.training.loop`.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray.train
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer, get_device, prepare_model

from ppt.config import Curriculum, Resources
from ppt.distributed.actors import ActorPool, told_in
from ppt.distributed.claims import claim
from ppt.distributed.cluster import connected, fits_beside_training
from ppt.distributed.monitor import watch
from ppt.distributed.stream import stream_epochs
from ppt.steps.step import Step
from ppt.store.checksums import check_folder, seal_folder
from ppt.store.nodes import Node, Store
from ppt.training.stage import RAY_TRAIN, EpochMetrics, StageTraining, history_of, log_epoch

if TYPE_CHECKING:  # a worker imports them after its readers have started
    from ppt.models.point_generator import PointGenerator


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
        self._connection = ExitStack()
        self._is_connected = False

    def run(self, step: Step) -> Node:
        node = step.node(self.store)
        if not node.is_complete():
            self._connect()
            with claim(node, step.title) as ours:
                if ours:
                    self.pool.make(node, step)
        return node

    def train(self, stage: StageTraining, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        node = stage.node(self.store)
        ours = False
        if not node.is_complete():
            assert self.trains
            self._connect()
            if not fits_beside_training(self.resources, self.runs):
                self.pool.close()
            with claim(node, stage.title) as ours:
                if ours:
                    try:
                        _train_stage(stage, node, on_epoch)
                    except TrainingFailedError as error:
                        raise told_in(error) or error from None
        if not ours:
            for metrics in node.manifest()["history"]:
                on_epoch(metrics)
        return node

    def _connect(self) -> None:
        if not self._is_connected:
            self._connection.enter_context(connected(self.resources, trains=self.trains))
            self._is_connected = True

    def close(self) -> None:
        """End the actors, and disconnect from the cluster."""
        self.pool.close()
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


# ---------------------------------------------------------------- training


def train_in_worker(stage: StageTraining, node: Node, monitor: Any) -> None:
    """Train a stage in one worker of Ray Train.

    The worker restores the latest checkpoint, streams its part of the plan and reports a checkpoint
    after every epoch.

    Args:
        stage: the training of the stage.
        node: its place in the store.
        monitor: a `Monitor` actor, to which the worker of rank 0 reports.
    """
    context, device = ray.train.get_context(), get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if rank > 0:
        monitor = None
    with _latest_checkpoint() as folder:
        epochs_done = len(history_of(folder)) if folder else 0
        streams = stream_epochs(
            stage.reader(stage.plan()),
            epochs=range(epochs_done + 1, stage.stage.num_epochs + 1),
            rank=rank,
            world_size=world_size,
            resources=stage.resources,
            pin=device.type == "cuda",
        )
        from ppt.models.loaded import use_threads
        from ppt.training.loop import build_worker

        use_threads(stage.resources.cpus_per_worker)
        worker = build_worker(stage, device, folder)
    worker.model.generator = cast("PointGenerator", prepare_model(worker.generator))
    if monitor:
        total = stage.stage.num_epochs * worker.plan.num_iterations
        ray.get(monitor.restart.remote(worker.history, worker.num_iterations, total))
    for epoch, batches in zip(worker.epochs_left, streams, strict=True):
        losses = worker.train_epoch(
            epoch, batches, on_iteration=monitor.advance.remote if monitor else None
        )
        if rank == 0:
            log_epoch(node, epoch)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                worker.save(folder)
                seal_folder(Path(folder))
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report(
                losses, checkpoint=checkpoint, checkpoint_dir_name=f"epoch-{epoch:04d}"
            )
        if monitor:
            ray.get(monitor.finish_epoch.remote(losses))


@contextmanager
def _latest_checkpoint() -> Iterator[str | None]:
    """Yield the folder of the last epoch of an interrupted training, or None for a new one."""
    if (checkpoint := ray.train.get_checkpoint()) is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        check_folder(Path(folder))
        yield folder


def _train_stage(
    stage: StageTraining, node: Node, on_epoch: Callable[[EpochMetrics], None]
) -> None:
    """Train a stage into the checkpoint `node`, or continue an interrupted training.

    `on_epoch` is called with the losses of each epoch, including those of restored epochs.
    """
    storage, started = f"{node.store.path}/{RAY_TRAIN}", time.monotonic()
    with watch(stage.title, on_epoch) as monitor, _interruptible():
        result = TorchTrainer(
            # Ray Train would hand a configuration to its controller too, which would import the
            # nets' libraries to unpickle it. What the function holds only goes to the workers.
            partial(train_in_worker, stage, node, monitor),
            scaling_config=ScalingConfig(
                num_workers=cast(Any, stage.resources.num_workers),  # Ray's type omits ranges
                use_gpu=stage.resources.gpus_per_worker > 0,
                resources_per_worker=_resources_per_worker(stage.resources),
            ),
            run_config=RunConfig(
                name=node.digest,  # Ray continues a run of the same name, so each name is unique
                storage_path=storage,
                storage_filesystem=node.store.arrow_filesystem(),
                failure_config=FailureConfig(max_failures=stage.resources.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        ).fit()
    assert result.checkpoint is not None  # every epoch reports one
    with result.checkpoint.as_directory() as folder:
        stage.publish(node, folder, time.monotonic() - started)
    node.store.fs.rm(f"{storage}/{node.digest}", recursive=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """A context in which Ctrl-C raises KeyboardInterrupt once Ray Train has ended the training.

    Ray Train has a handler of its own for it, which exits the process, and leaves it in place.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _resources_per_worker(resources: Resources) -> dict[str, float]:
    """Return the resources of a worker in the form that Ray Train accepts."""
    asked = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker > 0:
        asked["GPU"] = resources.gpus_per_worker
    return asked

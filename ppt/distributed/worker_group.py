"""The workers of Ray Train, which train the stages of a run one after another.

To start them takes longer than a short stage, so they stay for the next one. A worker streams its
own part of a stage's plan through Ray Data (`stream`), so a training that is continued starts at
the right epoch with any number of workers, and no order depends on how Ray splits a data set. The
checkpoint of an epoch is written into the store, and after the loss of a worker or of the driver
the new workers go on from the last checkpoint. The iteration itself is in `ppt.training.loop`.

What takes long in a new process is to import what it needs. A worker therefore starts its readers
first, and imports the nets and the training loop while they start.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ppt.config import Resources
from ppt.distributed.actors import told_in
from ppt.distributed.monitor import Introduction, Monitor, Progress
from ppt.distributed.stream import stream_epochs
from ppt.steps.progress import console, print_epoch, print_resumed, progress_bar
from ppt.store.nodes import Store
from ppt.training.stage import EpochMetrics, StageTraining

if TYPE_CHECKING:  # a worker imports them after its readers have started
    from ppt.models.point_generator import PointGenerator

POLL_SECONDS = 0.25
"""The time between two looks at the monitor."""

CLOSE_SECONDS = 20.0
"""The time that workers which wait for a stage have to end."""


class WorkerGroup:
    """The training workers of a run. They start with the first stage; `close` ends them."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self._monitor: Any = None
        self._fit: Future[object] | None = None  # ends when the workers have ended

    def train(
        self, stage: StageTraining, store: Store, on_epoch: Callable[[EpochMetrics], None]
    ) -> None:
        """Train a stage up to the checkpoint of its last epoch, or continue its training.

        `on_epoch` is called with the losses of each epoch, including those of restored epochs.

        Raises:
            DamagedFile: if a file that the training reads is damaged.
            ConfigError: if the disk cannot be written.
            TrainingFailedError: if a worker failed for another reason, more often than
                `resources.max_failures` says.
        """
        if self._fit is None or self._fit.done():
            self._start()
        try:
            ray.get(self._monitor.begin.remote([ray.put((stage, store))]))
            starts = self._follow(stage.title, on_epoch)
        except TrainingFailedError as error:
            self.close()
            raise told_in(error) or error from None
        except BaseException:
            self.close(within=0.0)
            raise
        if starts > 1:  # the next stage may survive as many failures as this one
            self.close()

    def _start(self) -> None:
        """Start the monitor and Ray Train, which starts the workers."""
        # The actor runs on the driver's node: on another one it could die while the workers live.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._monitor = ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray-train")
        self._fit = thread.submit(_run_workers, self.resources, self._monitor)
        thread.shutdown(wait=False)

    def _follow(self, title: str, on_epoch: Callable[[EpochMetrics], None]) -> int:
        """Show the progress of a stage until it is finished.

        Returns:
            How often workers began or went on with it.
        """
        assert self._fit is not None
        shown = seen = starts = restored = 0
        with progress_bar(title, None, "iterations") as advance:
            while True:
                ended = wait([self._fit], POLL_SECONDS).done
                now: Progress = ray.get(self._monitor.state.remote())
                if now.starts > max(starts, 1):
                    console.print(
                        f"[yellow]warning:[/] {title}: the workers failed and were started again, "
                        f"they continue after epoch {len(now.history)}; Ray's log folder says why",
                        highlight=False,
                        soft_wrap=True,
                    )
                if now.starts and not starts:
                    restored, shown = now.restored
                    advance(shown, now.total, is_new=False)
                    if restored:
                        print_resumed(title, restored)
                starts = now.starts
                advance(now.iterations - shown, now.total)
                shown = now.iterations
                for metrics in now.history[seen:]:
                    on_epoch(dict(metrics))
                    if metrics["epoch"] > restored:
                        print_epoch(title, metrics["epoch"], metrics["loss"])
                seen = max(seen, len(now.history))
                if now.is_finished:
                    return now.starts
                if ended:
                    self._fit.result()
                    raise RuntimeError(f"{title}: the workers have ended without a failure")

    def close(self, *, within: float = CLOSE_SECONDS) -> None:
        """End the workers.

        Those that wait for a stage end by themselves; after `within` seconds they are ended.
        """
        if self._fit is None:
            return
        with suppress(RayError):  # among them the end of the controller
            ray.get(self._monitor.close.remote())
            still_there = wait([self._fit], within).not_done
            if still_there and (controller := ray.get(self._monitor.controller.remote())):
                ray.get(controller.abort.remote())
        self._monitor = self._fit = None  # the monitor ends when nobody has a handle of it


def _run_workers(resources: Resources, monitor: Any) -> None:
    """Run Ray Train until the workers have ended."""
    with tempfile.TemporaryDirectory(prefix="ppt-ray-train-") as storage:
        TorchTrainer(
            # Ray Train would hand a configuration to its controller too, which would import the
            # nets' libraries to unpickle it. What the function holds only goes to the workers.
            partial(train_stages_in_worker, monitor),
            scaling_config=ScalingConfig(
                num_workers=cast(Any, resources.num_workers),  # Ray's type omits ranges
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=_resources_per_worker(resources),
            ),
            run_config=RunConfig(
                storage_path=storage,  # nothing is kept there: the store has the checkpoints
                failure_config=FailureConfig(max_failures=resources.max_failures),
                callbacks=[cast(Any, Introduction(monitor))],
            ),
        ).fit()


def _resources_per_worker(resources: Resources) -> dict[str, float]:
    """Return the resources of a worker in the form that Ray Train accepts."""
    asked = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker > 0:
        asked["GPU"] = resources.gpus_per_worker
    return asked


# ---------------------------------------------------------------- in a worker


def train_stages_in_worker(monitor: Any) -> None:
    """Train the stages that a `Monitor` hands out, in one worker of Ray Train, until it is closed.

    A worker that was started again gets the stage that is being trained.
    """
    number = 0
    while found := ray.get(monitor.next_stage.remote(number)):
        number, (reference,) = found
        stage, store = ray.get(reference)
        _train_in_worker(stage, store, monitor)
        gc.collect()
        torch.cuda.empty_cache()  # while the workers wait, actors may compute on the device


def _train_in_worker(stage: StageTraining, store: Store, monitor: Any) -> None:
    """Train a stage from its last checkpoint, and write one after every epoch.

    Args:
        stage: the training of the stage.
        store: the store of the run.
        monitor: the `Monitor`, to which the worker of rank 0 reports.
    """
    context, device = ray.train.get_context(), get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    last = stage.last_epoch(store)
    epochs_done = last.made_from["spec"]["epoch"] if last else 0
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
    worker = build_worker(stage, device, last.local_folder() if last else None)
    worker.model.generator = cast("PointGenerator", prepare_model(worker.generator))
    if rank == 0:
        total = stage.stage.num_epochs * worker.plan.num_iterations
        ray.get(monitor.restart.remote(worker.history, worker.num_iterations, total))
    with stage.keeping_epochs(store, last) as keep:
        for epoch, batches in zip(worker.epochs_left, streams, strict=True):
            losses = worker.train_epoch(
                epoch, batches, on_iteration=monitor.advance.remote if rank == 0 else None
            )
            if rank == 0:
                keep(epoch, worker.checkpoint())
            ray.train.report(losses)  # the workers wait for each other
            if rank == 0:
                ray.get(monitor.finish_epoch.remote(losses))
    if rank == 0:
        ray.get(monitor.finish_stage.remote())

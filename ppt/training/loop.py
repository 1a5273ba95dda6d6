"""The training loop of one epoch, and the state of a worker that trains a stage.

The runner provides the batches of a worker and keeps its checkpoints.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ppt.batches.batch import Batch
from ppt.models.loaded import build_point_prompting
from ppt.models.point_prompting import PointPrompting
from ppt.models.precision import ordered, quick_products
from ppt.training.checkpoint import checkpoint_files, load_checkpoint
from ppt.training.criterion import SetCriterion, build_criterion
from ppt.training.optim import build_optimizer, build_schedule
from ppt.training.stage import EpochMetrics, StageTraining, worker_class

READ_EVERY = 50
"""The number of iterations after which their values are read from the device."""


def train_one_epoch(
    model: PointPrompting,
    criterion: SetCriterion,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    device: torch.device | str,
    max_norm: float,
    scheduler: LRScheduler | None = None,
    on_iteration: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Train on each batch once.

    Args:
        model: the model. For data parallelism `model.generator` may be wrapped in DDP.
        criterion: the losses and their weights.
        batches: the batches of the epoch, one for each iteration.
        optimizer: the optimiser of the generator's parameters.
        device: the device to which the batches are moved.
        max_norm: the norm to which gradients are clipped.
        scheduler: the learning-rate schedule, which advances after each iteration.
        on_iteration: called after each iteration.

    Returns:
        The means over the iterations by name: of the losses, of `loss`, which is their weighted
        sum, and of the norm of the gradient before it is clipped.

    Raises:
        FloatingPointError: if a loss or the norm of the gradient is not finite. It is found when
            they are next read, at the latest at the end of the epoch and so before a checkpoint is
            written.
    """
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    means = _Means()
    for batch in batches:
        batch = batch.to(device)
        outputs = model(batch, read_all=criterion.reads_all)
        losses = criterion(model, outputs, batch)
        loss = criterion.total(losses, outputs)

        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        means.add({"loss": loss, **losses, "gradient_norm": norm})
        optimizer.step()
        if scheduler is not None:
            scheduler.step()

        if on_iteration is not None:
            on_iteration()
    return means.read()


class _Means:
    """The means of values over iterations, kept on the device and read now and then.

    To read a value makes the host wait for the device.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums = np.zeros(0)
        self._unread: list[Tensor] = []  # one for each iteration that was not read yet
        self._read = 0  # iterations

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the values of an iteration. Raises FloatingPointError as `read` does."""
        self._names = list(values)
        self._unread.append(torch.stack([value.detach() for value in values.values()]))
        if len(self._unread) == READ_EVERY:
            self._fetch()

    def read(self) -> dict[str, float]:
        """Return the means by name. Raises FloatingPointError if a value is not finite."""
        self._fetch()
        return dict(zip(self._names, (self._sums / max(self._read, 1)).tolist(), strict=True))

    def _fetch(self) -> None:
        if not self._unread:
            return
        rows = torch.stack(self._unread).cpu().double().numpy()
        for number, row in enumerate(rows, start=self._read + 1):
            if not np.isfinite(row).all():
                values = dict(zip(self._names, row.tolist(), strict=True))
                raise FloatingPointError(f"iteration {number}: a value is not finite: {values}")
        self._sums = rows.sum(0) + (self._sums if self._read else 0.0)
        self._read += len(rows)
        self._unread.clear()


class StageWorker:
    """A worker of a stage's training, with the model, the optimiser, the schedule and the history.

    Subclasses implement other kinds of stages; see `ppt.config.stage_kinds`. A subclass raises its
    `version` when the meaning of its code changes. The version is part of the digest of every
    checkpoint of the kind.
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        stage: StageTraining,
        device: torch.device | str,
        checkpoint: str | Path | None = None,
    ) -> None:
        """Build the model and load its parameters.

        Args:
            stage: the training of the stage.
            device: the device of the model.
            checkpoint: the folder of a checkpoint of the same stage, from which training goes on.
                Without it the stage starts from its initial checkpoint or, if there is none, from
                parameters drawn from its seed.
        """
        self.stage = stage
        self.device = torch.device(device)
        self.model = build_point_prompting(stage.model, stage.seed, str(self.device))
        self.generator = self.model.generator  # remains unwrapped if the model's is put into DDP
        self.optimizer = build_optimizer(
            self.generator, stage.training.optimizer, stage.learning_rate
        )
        self.criterion = build_criterion(stage.training)
        self.plan = stage.plan()
        self.history: list[EpochMetrics] = []
        if checkpoint is not None:
            metadata = load_checkpoint(checkpoint, self.generator, self.optimizer)
            self.history = metadata["history"]
        elif stage.initial is not None:
            load_checkpoint(stage.initial.local_folder(), self.generator)
        self.scheduler = build_schedule(
            self.optimizer,
            stage.training.schedule,
            num_iterations=stage.stage.num_epochs * self.plan.num_iterations,
            done=self.num_iterations,
        )

    @property
    def num_iterations(self) -> int:
        """The iterations done so far, including those before an interruption."""
        return len(self.history) * self.plan.num_iterations

    @property
    def epochs_left(self) -> range:
        """The numbers, counted from 1, of the epochs that are still to be trained."""
        return range(len(self.history) + 1, self.stage.stage.num_epochs + 1)

    def train_epoch(
        self,
        epoch: int,
        batches: Iterable[Batch],
        *,
        on_iteration: Callable[[], object] | None = None,
    ) -> EpochMetrics:
        """Train for one epoch.

        Args:
            epoch: the number of the epoch, from 1.
            batches: the batches of this worker, one for each iteration.
            on_iteration: called after each iteration.

        Returns:
            The epoch's part of the history (its number, the means of its losses and of the norm of
            the gradient, and the learning rate after it), and what was measured on this machine:
            the expressions per second, of all workers together, and the most memory in GiB, of the
            device or, on a CPU, of the process.
        """

        def iterated() -> None:
            self.after_iteration()
            if on_iteration is not None:
                on_iteration()

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.monotonic()
        with quick_products(self.device), ordered(self.device):
            means = train_one_epoch(
                self.model,
                self.criterion,
                batches,
                self.optimizer,
                device=self.device,
                max_norm=self.stage.training.max_norm,
                scheduler=self.scheduler,
                on_iteration=iterated,
            )
        seconds = time.monotonic() - started
        rate = float(self.scheduler.get_last_lr()[0])
        self.history.append({"epoch": epoch, **means, "learning_rate": rate})
        return {
            **self.history[-1],
            "expressions_per_second": self.plan.num_iterations * self.plan.batch_size / seconds,
            "memory_gib": _most_memory(self.device) / 2**30,
        }

    def after_iteration(self) -> None:
        """Do nothing. Other kinds of stages override this, for example to average parameters."""

    def checkpoint(self) -> dict[str, bytes]:
        """Return the files of a checkpoint of the state after the last epoch, by their names."""
        return checkpoint_files(self.generator, self.optimizer, {"history": self.history})


def _most_memory(device: torch.device) -> int:
    """Return the most memory that was in use, in bytes.

    On a GPU it is that of tensors since the statistics were reset, on a CPU that of the process
    since it began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build_worker(
    stage: StageTraining, device: torch.device | str, checkpoint: str | Path | None = None
) -> StageWorker:
    """Build a worker of the stage's kind; the arguments are those of `StageWorker`."""
    return worker_class(stage.stage.kind)(stage, device, checkpoint)

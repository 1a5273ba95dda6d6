"""The actor between a driver and its training workers: it hands out stages and collects progress.

To start quickly, its process imports neither torch nor the training's modules. For the same reason
this holds for the process of Ray Train's controller, which unpickles what is in this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from ppt.distributed.ray_private import ControllerCallback


@dataclass
class Progress:
    """How far the training of a stage has come."""

    iterations: int = 0
    restored: tuple[int, int] = (0, 0)  # the epochs and iterations of an earlier run among them
    total: int | None = None  # iterations of the whole training; None until the workers have begun
    history: list[Mapping[str, float]] = field(default_factory=list)  # the figures of epochs
    starts: int = 0  # how often workers have begun or gone on with the training
    is_finished: bool = False


class Monitor:
    """An actor from which the workers take stages, and to which the one of rank 0 reports."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._number = 0  # of the last stage
        self._stage: list[Any] | None = None  # its reference, as long as it is to be trained
        self._is_closed = False
        self._controller: Any = None
        self.progress = Progress()

    # ------------------------------------------------------------ for the driver

    async def begin(self, stage: list[Any]) -> None:
        """Hand a stage to the workers. The list holds its reference, which is not fetched here."""
        self._number, self._stage, self.progress = self._number + 1, stage, Progress()
        await self._notify()

    async def state(self) -> Progress:
        """Return the progress of the stage that was begun last."""
        return self.progress

    async def close(self) -> None:
        """Let the workers end when they ask for the next stage."""
        self._is_closed = True
        await self._notify()

    async def controller(self) -> Any:
        """Return the actor of Ray Train that controls the workers; None before it has started."""
        return self._controller

    # ------------------------------------------------------------ for the workers

    async def next_stage(self, after: int) -> tuple[int, list[Any]] | None:
        """Wait for a stage with a number above `after`, and return both; None at the end."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._is_closed or self._stage is not None and self._number > after
            )
        return None if self._is_closed or self._stage is None else (self._number, self._stage)

    async def restart(
        self, history: list[Mapping[str, float]], iterations: int, total: int
    ) -> None:
        """Set the state from which a group of workers begins or continues.

        Args:
            history: the losses of the epochs before it.
            iterations: the iterations before it.
            total: the iterations of the whole training.
        """
        starts = self.progress.starts + 1
        restored = self.progress.restored if starts > 1 else (len(history), iterations)
        self.progress = Progress(iterations, restored, total, list(history), starts)

    async def advance(self) -> None:
        """Count one iteration."""
        self.progress.iterations += 1

    async def finish_epoch(self, metrics: Mapping[str, float]) -> None:
        """Add the losses of an epoch."""
        self.progress.history.append(metrics)

    async def finish_stage(self) -> None:
        """Note that the checkpoint of the last epoch is written."""
        self._stage = None
        self.progress.is_finished = True

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # ------------------------------------------------------------ for the controller

    async def introduce(self, controller: Any) -> None:
        """Note the actor of Ray Train that controls the workers."""
        self._controller = controller


class Introduction(ControllerCallback):
    """Introduces Ray Train's controller, in whose process it is called, to the monitor."""

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor

    def after_controller_start(self, train_run_context: object) -> None:
        """Tell the monitor which actor this is. Ray Train calls this before it starts workers."""
        self.monitor.introduce.remote(ray.get_runtime_context().current_actor)

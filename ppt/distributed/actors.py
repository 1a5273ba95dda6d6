"""A pool of Ray actors that carry out steps, bucket by bucket.

The actors keep the models that they have built, so that one pool serves every step of a run. A
bucket is written whole or not at all, and a bucket that exists is not made again. An actor that
dies is replaced, and another actor makes its bucket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from ppt.config import ConfigError, Resources
from ppt.models.loaded import use_device, use_threads
from ppt.steps.progress import prepare_folder, progress_bar
from ppt.steps.step import Step
from ppt.store.checksums import DamagedFile
from ppt.store.disk import disk_fault
from ppt.store.nodes import Node

MAX_ATTEMPTS = 3
"""The number of times that a bucket may lose its actor before the step fails.

Actors may also die while they start. The step fails if this happens more than `MAX_ATTEMPTS` times
for each actor of the pool, and no bucket is made in between.
"""


class StepError(RuntimeError):
    """A bucket could not be made; the message names the node, the bucket and the cause."""


def told_in(error: BaseException) -> ConfigError | None:
    """Return what to tell the user about the failure of an actor or of a training's worker.

    It is a damaged file, or a disk that cannot be written; None if it is anything else.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, DamagedFile) and not isinstance(one, RayTaskError):
            return one
        if told := disk_fault(one):
            return told
        seen.add(id(one))
        causes = [one.__cause__, one.__context__, getattr(one, "cause", None)]
        causes += getattr(one, "worker_failures", {}).values()
        waiting += [c for c in causes if isinstance(c, BaseException) and id(c) not in seen]
    return None


class _Actor:
    """An actor that makes buckets on the device that Ray assigned to it."""

    def __init__(self, cpus: float) -> None:
        use_device("cuda" if ray.get_gpu_ids() else "cpu")
        use_threads(cpus)
        self._reference: list[Any] = []
        self._step = cast(Step, None)

    def run(self, node: Node, reference: list[Any], bucket: int, following: int | None) -> int:
        """Make and write one bucket, and return the number of rows that went into it.

        `reference` holds that of the step, which is fetched once. The actor is likely to be asked
        for the bucket `following` after this one.
        """
        if reference != self._reference:
            self._reference, self._step = reference, ray.get(reference[0])
        self._step.expect(following)
        output = self._step(bucket)
        node.write_bucket(bucket, output)
        return next((count.into for count in output.counts.values()), 0)


@dataclass
class ActorPool:
    """The actors for the steps of a run. They start when they are needed; `close` ends them."""

    resources: Resources
    actors: list[Any] = field(init=False, default_factory=list)

    def _start(self) -> Any:
        return (
            ray.remote(_Actor)
            .options(
                num_cpus=self.resources.cpus_per_actor,
                num_gpus=self.resources.gpus_per_actor,
                scheduling_strategy="DEFAULT",  # outside of a trial's placement group
            )
            .remote(self.resources.cpus_per_actor)
        )

    def make(self, node: Node, step: Step) -> None:
        """Make the missing buckets of `node`, then its manifest.

        Raises StepError if a bucket cannot be made, DamagedFile if a file that it is made of is
        damaged, and ConfigError if the disk cannot be written.
        """
        todo = prepare_folder(node)
        # If only some of the buckets are missing, their number of rows is unknown.
        total = step.total() if len(todo) == node.num_buckets else None
        with progress_bar(step.title, total) as advance:
            self._run_buckets(node, step, todo, advance)
        node.clean()  # of what actors left that died
        node.write_manifest(**step.facts())

    def _run_buckets(
        self, node: Node, step: Step, todo: Sequence[int], advance: Callable[[int], None]
    ) -> None:
        while len(self.actors) < self.resources.most_actors:
            self.actors.append(self._start())
        reference = [ray.put(step)]
        idle, waiting, lost = list[Any](), list(todo), Counter[int | None]()
        expected: dict[Any, int] = {}  # which bucket an actor gets next, unless another is free
        # An actor gets a bucket only when it runs: on a small cluster it may never start.
        running: dict[Any, tuple[Any, int | None]] = {
            actor.__ray_ready__.remote(): (actor, None) for actor in self.actors
        }
        while waiting or any(bucket is not None for _, bucket in running.values()):
            while waiting and idle:
                actor = idle.pop()
                bucket, following = _choose(waiting, expected, actor)
                call = actor.run.remote(node, reference, bucket, following)
                running[call] = (actor, bucket)
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, of = running.pop(done)
            try:
                rows = ray.get(done)
            except RayTaskError as error:
                if told := told_in(error):
                    raise told from None
                raise StepError(f"{node.kind} {node.digest}, bucket {of}: {error}") from error
            except (ActorDiedError, ActorUnavailableError) as error:
                lost[of] += 1
                if of is not None and lost[of] == MAX_ATTEMPTS:
                    raise StepError(
                        f"{node.kind} {node.digest}: bucket {of} lost its actor "
                        f"{MAX_ATTEMPTS} times: {error}"
                    ) from error
                if lost[None] > MAX_ATTEMPTS * self.resources.most_actors:
                    raise StepError(
                        f"{node.kind} {node.digest}: the actors die as they start: {error}"
                    ) from error
                self.actors.remove(actor)
                expected.pop(actor, None)
                self.actors.append(self._start())
                running[self.actors[-1].__ray_ready__.remote()] = (self.actors[-1], None)
                if of is not None:
                    waiting.append(of)
            else:
                idle.append(actor)
                if of is not None:
                    advance(rows)
                    del lost[None]

    def close(self) -> None:
        """End all actors."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors.clear()


def _choose(waiting: list[int], expected: dict[Any, int], actor: Any) -> tuple[int, int | None]:
    """Take a bucket for an actor, and say which one it is to expect after it.

    It gets the one that it expects, or one that nobody expects, or else that of another actor.
    """
    bucket = expected.pop(actor, None)
    taken = set(expected.values())
    free = (b for b in waiting if b not in taken and b != bucket)
    if bucket is None:
        bucket = next(free, waiting[0])
    for other in [other for other, of in expected.items() if of == bucket]:
        del expected[other]
    following = next(free, None)
    if following is not None:
        expected[actor] = following
    waiting.remove(bucket)
    return bucket, following

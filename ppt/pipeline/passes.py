"""The one shape of every pass: a function over one bucket, run by a pool of Ray actors.

The actors keep the models they have built (`functools.cache` at module level), so one pool serves
every pass of a run. A bucket is written whole or not at all; one that is there is not done again;
an actor that dies is replaced and its bucket goes to another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from ppt.config import ConfigError, Resources
from ppt.pipeline.claims import claim
from ppt.pipeline.progress import progress_bar
from ppt.store import BucketOutput, Node

Process = Callable[[int], BucketOutput]

MAX_ATTEMPTS = 3
"""How often a bucket may lose its actor, and each actor die starting, before a pass gives up."""


class PassError(RuntimeError):
    """A bucket could not be done; the message names the node, the bucket and the cause."""


class _Worker:
    def run(self, node: Node, process: Process, bucket: int) -> int:
        output = process(bucket)
        node.write_bucket(bucket, output)
        return next((count.into for count in output.counts.values()), 0)


@dataclass
class Pool:
    """Actors for the passes of one run. `close` gives their resources back; they start lazily.

    With `only_there` nothing is made: a node that is not complete is a ConfigError.
    """

    resources: Resources
    actors: list[Any] = field(default_factory=list)
    only_there: bool = False

    def _start(self) -> Any:
        return (
            ray.remote(_Worker)
            .options(
                num_cpus=self.resources.cpus_per_actor,
                num_gpus=self.resources.gpus_per_actor,
                scheduling_strategy="DEFAULT",  # a trial's placement group has no room for them
            )
            .remote()
        )

    def run(self, node: Node, process: Process, *, title: str, total: int | None = None) -> Node:
        """Make the buckets of `node` that are missing, then its manifest. Returns the node.

        `process` must be picklable; `total` is the number of rows that go in, for the bar. Where
        another run is making the node, this waits and uses it.
        """
        if self.only_there and not node.is_complete():
            raise ConfigError(
                f"this curriculum is not trained ({title!r} is not done): run `ppt train` with it, "
                "or give all overrides that it was trained with"
            )
        with claim(node) as ours:
            if ours:
                self._make(node, process, title, total)
        return node

    def _make(self, node: Node, process: Process, title: str, total: int | None) -> None:
        todo = node.missing_buckets()
        # With only some buckets to do, nobody knows how many rows they hold.
        whole = total if len(todo) == node.num_buckets else None
        with progress_bar(title, whole) as advance:
            self._run_buckets(node, process, todo, advance)
        node.write_manifest()

    def _run_buckets(
        self, node: Node, process: Process, todo: Sequence[int], advance: Callable[[int], None]
    ) -> None:
        while len(self.actors) < self.resources.num_actors:
            self.actors.append(self._start())
        reference = ray.put(process)
        idle, waiting, lost = list[Any](), list(todo), Counter[int | None]()
        # An actor has work only once it runs: on a cluster that has shrunk it may wait for ever.
        running: dict[Any, tuple[Any, int | None]] = {
            actor.__ray_ready__.remote(): (actor, None) for actor in self.actors
        }
        while waiting or any(bucket is not None for _, bucket in running.values()):
            while waiting and idle:
                actor, bucket = idle.pop(), waiting.pop(0)
                running[actor.run.remote(node, reference, bucket)] = (actor, bucket)
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, of = running.pop(done)
            try:
                rows = ray.get(done)
            except RayTaskError as error:
                raise PassError(f"{node.kind} {node.digest}, bucket {of}: {error}") from error
            except (ActorDiedError, ActorUnavailableError) as error:
                lost[of] += 1
                if of is not None and lost[of] == MAX_ATTEMPTS:
                    raise PassError(
                        f"{node.kind} {node.digest}: bucket {of} lost its actor "
                        f"{MAX_ATTEMPTS} times: {error}"
                    ) from error
                if lost[None] > MAX_ATTEMPTS * self.resources.num_actors:
                    raise PassError(
                        f"{node.kind} {node.digest}: the actors die as they start: {error}"
                    ) from error
                self.actors.remove(actor)
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
        for actor in self.actors:
            ray.kill(actor)
        self.actors.clear()

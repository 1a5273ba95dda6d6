"""Claims on nodes, so that several runs on one cluster do not make the same node at once.

The first run that claims a node makes it, and the others wait and use the result. A claim is a
lease, which the holder's process renews. If that process or its machine dies, the lease expires and
another run continues from what is in the store. The leases are kept by one named actor of the
cluster; runs on different clusters do not see each other's claims, and
are kept apart by the locks of a local store (`ppt.store.locks`).
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ppt.distributed.ray_private import HEAD
from ppt.steps.progress import print_waiting
from ppt.store.locks import locked
from ppt.store.nodes import Node

LEASE_SECONDS = 20.0
"""The time after which a lease that is not renewed expires.

It is long enough that a busy machine is not taken for dead, and that Ray has ended what the dead
process had started (a training of Ray Train dies with the process that called it).
"""

RENEW_SECONDS = 2.0
"""The time between two renewals of a lease."""

ASK_SECONDS = 0.5
"""The time between two attempts to get a lease."""

_NAME, _NAMESPACE = "ppt-claims", "ppt"


class Leases:
    """The leases: who may make what, and until when.

    Args:
        seconds: the duration of a lease.
        closed_for: the time after the start in which `acquire` grants no lease, in seconds.
        clock: a function that returns the time in seconds.
    """

    def __init__(
        self,
        seconds: float = LEASE_SECONDS,
        closed_for: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._clock = seconds, clock
        self._opens = clock() + closed_for
        self._held: dict[str, tuple[str, float]] = {}  # what -> (holder, time of expiry)

    def acquire(self, what: str, holder: str) -> bool:
        """Take the lease of `what` if it is free, and return whether `holder` has it now."""
        return self._clock() >= self._opens and self.renew(what, holder)

    def renew(self, what: str, holder: str) -> bool:
        """Extend a lease, or take one that is free, and return whether `holder` has it now."""
        owner, runs_out = self._held.get(what, (holder, 0.0))
        if owner != holder and self._clock() < runs_out:
            return False
        self._held[what] = holder, self._clock() + self._seconds
        return True

    def release(self, what: str, holder: str) -> None:
        """Give up a lease, if `holder` has it."""
        if self._held.get(what, ("",))[0] == holder:
            del self._held[what]


class _LeasesActor(Leases):
    def __init__(self, seconds: float) -> None:
        # An actor that Ray restarted knows no leases. Until they would have expired it accepts
        # only renewals, so that the former holders keep their leases.
        again = ray.get_runtime_context().was_current_actor_reconstructed
        super().__init__(seconds, closed_for=seconds if again else 0.0)


def leases_actor(seconds: float = LEASE_SECONDS) -> Any:
    """Return the cluster's actor of leases.

    The first process that asks creates the actor, which then lives as long as the cluster.
    """
    options: dict[str, Any] = {
        "name": _NAME,
        "namespace": _NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "resources": {HEAD: 0.001},  # on the head, which lives as long as the cluster
        "scheduling_strategy": "DEFAULT",  # outside of the caller's placement group
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    return ray.remote(_LeasesActor).options(**options).remote(seconds)


@contextmanager
def claim(node: Node, title: str, release: Callable[[], None]) -> Iterator[bool]:
    """Wait until `node` is complete, or until this process may make it.

    If another run is making it, a line says that `title` is waited for, and `release` is called,
    because that run may need what this one holds. The lock of a local store comes first, because
    runs on other clusters have no part in the leases.

    Yields True if the block must make the node, and False if the node is complete. A node that is
    complete at the beginning needs no lease.
    """
    if node.is_complete():
        yield False
        return

    def wait() -> None:
        release()
        print_waiting(title)

    with locked(node.store, node.digest, wait):
        leases, what, holder = leases_actor(), node.folder, uuid.uuid4().hex
        told = False
        while not ray.get(leases.acquire.remote(what, holder)):
            if not told:
                wait()
                told = True
            time.sleep(ASK_SECONDS)
        with _renewed(leases, what, holder):
            yield not node.is_complete()  # the former holder may have completed it


@contextmanager
def _renewed(leases: Any, what: str, holder: str) -> Iterator[None]:
    """Hold a lease during the block; a thread renews it as long as this process lives."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEW_SECONDS):
            leases.renew.remote(what, holder)

    thread = threading.Thread(target=renew, name="renew-claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        ray.get(leases.release.remote(what, holder))

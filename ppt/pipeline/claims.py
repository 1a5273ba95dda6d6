"""Who makes a node when several runs on one cluster want the same one.

Whoever comes first makes it, the others wait and use what was made. A claim is a lease that its
holder's process renews: if that process or its node dies, the lease runs out and another goes on
from what stands in the store. The leases are kept by one named actor of the cluster; runs on
different clusters know nothing of each other.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ppt.store import Node

LEASE_SECONDS = 20.0
"""Long enough that a busy machine is not taken for dead, and that Ray has ended what the dead one
had started (a Ray Train run dies with the process that called it)."""

RENEW_SECONDS = 2.0
ASK_SECONDS = 0.5

_NAME, _NAMESPACE = "ppt-claims", "ppt"

HEAD = "node:__internal_head__"
"""The resource that every Ray cluster's head has, and it alone."""


class Leases:
    """Who makes what until when. `closed_for`: seconds in which nobody is granted anything."""

    def __init__(
        self,
        seconds: float = LEASE_SECONDS,
        closed_for: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._clock = seconds, clock
        self._opens = clock() + closed_for
        self._held: dict[str, tuple[str, float]] = {}  # what -> (holder, when it runs out)

    def acquire(self, what: str, holder: str) -> bool:
        """Whether `what` is the holder's to make; ask again if not."""
        return self._clock() >= self._opens and self.renew(what, holder)

    def renew(self, what: str, holder: str) -> bool:
        """Prolong a lease, or take it up again if it is nobody's; whether it is the holder's."""
        owner, runs_out = self._held.get(what, (holder, 0.0))
        if owner != holder and self._clock() < runs_out:
            return False
        self._held[what] = holder, self._clock() + self._seconds
        return True

    def release(self, what: str, holder: str) -> None:
        if self._held.get(what, ("",))[0] == holder:
            del self._held[what]


class _LeasesActor(Leases):
    def __init__(self, seconds: float) -> None:
        # An actor that Ray had to start again has forgotten all: holders renew before others ask.
        again = ray.get_runtime_context().was_current_actor_reconstructed
        super().__init__(seconds, closed_for=seconds if again else 0.0)


def leases_actor(seconds: float = LEASE_SECONDS) -> Any:
    """The cluster's one actor of leases; made by whoever asks first, gone with the cluster."""
    options: dict[str, Any] = {
        "name": _NAME,
        "namespace": _NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "resources": {HEAD: 0.001},  # the one node that no cluster survives
        "scheduling_strategy": "DEFAULT",  # not in the placement group of the one who asks
        "max_restarts": -1,
        "max_task_retries": -1,
    }
    return ray.remote(_LeasesActor).options(**options).remote(seconds)


@contextmanager
def claim(node: Node) -> Iterator[bool]:
    """Wait until `node` is complete (yields False) or ours to make (True: make it in this block).

    Costs nothing but a look for a node that is complete.
    """
    if node.is_complete():
        yield False
        return
    leases, what, holder = leases_actor(), node.folder, uuid.uuid4().hex
    while not ray.get(leases.acquire.remote(what, holder)):
        time.sleep(ASK_SECONDS)
    with _renewed(leases, what, holder):
        yield not node.is_complete()  # the one before us may have finished it


@contextmanager
def _renewed(leases: Any, what: str, holder: str) -> Iterator[None]:
    """Hold a lease for the block: a thread renews it as long as this process lives."""
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

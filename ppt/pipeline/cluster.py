"""The Ray cluster of a run: the one RAY_ADDRESS names, else one of this machine's own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

from ppt.config import ConfigError, Resources


@contextmanager
def connected(resources: Resources, *, dashboard: bool = False) -> Iterator[None]:
    """Connect, check that the run fits, disconnect. Ray's own chatter stays in its log files.

    `dashboard`: a cluster of this machine's own gets one.
    """
    # Train asks its workers so often whether they are done: a stage ends the sooner for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    already = ray.is_initialized()
    if not already:
        ray.init(include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    try:
        check_fits(resources)
        yield
    finally:
        if not already:
            ray.shutdown()


def check_fits(resources: Resources) -> None:
    """Raise ConfigError where passes or training ask for more than the cluster's nodes have.

    Without this check a job that can never be placed waits in silence.
    """
    there = ray.cluster_resources()
    for asked in (
        pass_request(resources),
        train_request(resources, resources.fewest_workers),
    ):
        for kind, amount in asked.items():
            if amount > there.get(kind, 0) + 1e-6:
                raise ConfigError(
                    f"resources ask for {amount:g} {kind} at once, the cluster has "
                    f"{there.get(kind, 0):g}: lower resources.num_* or resources.*_per_*"
                )
    for what, number, asked in (
        ("actor", resources.num_actors, actor_request(resources)),
        ("worker", resources.fewest_workers, worker_request(resources)),
    ):
        if number > (places := _places(asked)):
            each = " and ".join(f"{amount:g} {kind}" for kind, amount in asked.items() if amount)
            raise ConfigError(
                f"resources.num_{what}s asks for {number} of {each} each, the cluster's nodes have "
                f"room for {places} (each lies on one node): lower it or resources.*_per_{what}"
            )


def fits_beside_training(resources: Resources, runs: int = 1) -> bool:
    """Whether the actors of the passes may stay while a stage trains, in so many runs at once.

    Never on several machines: their actors may lie so that none of them has room for a worker.
    """
    if len(_nodes()) > 1:
        return False
    there = ray.cluster_resources()
    train = train_request(resources, resources.most_workers)
    return all(
        runs * (amount + train.get(kind, 0)) <= there.get(kind, 0) + 1e-6
        for kind, amount in pass_request(resources).items()
    )


def runs_at_once(resources: Resources) -> int:
    """How many runs have a place beside each other, each passing or training at a time.

    No more may run: each of them could hold a part of what every other one waits for.
    """
    there, passes, train = (
        ray.cluster_resources(),
        pass_request(resources),
        train_request(resources, resources.most_workers),
    )
    asked = {kind: max(amount, train.get(kind, 0)) for kind, amount in passes.items()}
    return min(
        int((there.get(kind, 0) + 1e-6) // amount) for kind, amount in asked.items() if amount > 0
    )


def _nodes() -> list[dict[str, float]]:
    """The resources of every node that does work."""
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [resources for resources in alive if resources.get("CPU", 0) > 0]


def _places(asked: dict[str, float]) -> int:
    """How many that each ask for this the nodes have room for, each of them on one node."""
    return sum(
        min(int((node.get(kind, 0) + 1e-6) // amount) for kind, amount in asked.items() if amount)
        for node in _nodes()
    )


def actor_request(resources: Resources) -> dict[str, float]:
    return {"CPU": resources.cpus_per_actor, "GPU": resources.gpus_per_actor}


def worker_request(resources: Resources) -> dict[str, float]:
    return {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}


def pass_request(resources: Resources) -> dict[str, float]:
    """What the actor pool takes."""
    return {k: resources.num_actors * amount for k, amount in actor_request(resources).items()}


def train_request(resources: Resources, num_workers: int) -> dict[str, float]:
    """What a stage takes with so many workers: them and one reader for each."""
    asked = {k: num_workers * amount for k, amount in worker_request(resources).items()}
    asked["CPU"] += num_workers * resources.cpus_per_reader
    return asked

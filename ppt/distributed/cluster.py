"""The Ray cluster of a run: the one that RAY_ADDRESS names, or else a new one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as NodeAffinity

from ppt.config import ConfigError, Resources
from ppt.distributed.ray_private import (
    Node,
    canonicalize_bootstrap_address,
    get_num_cpus,
    init_grpc_channel,
)

STARTS = 3
"""The number of attempts to start Ray."""

ANSWER_WITHIN = 5.0
"""The time in seconds within which a cluster must answer."""


@contextmanager
def connected(
    resources: Resources | None = None, *, trains: bool = True, dashboard: bool = False
) -> Iterator[None]:
    """Connect to the cluster, check that a run fits, and disconnect after the block.

    Ray's own messages stay in its log files. Without `resources` nothing is checked, and with
    `trains` as False no room for a training is. With `dashboard`, a cluster that is started here
    gets a dashboard. Raises ConfigError if the run does not fit, if Ray does not start, or if no
    cluster answers at the address that RAY_ADDRESS names.
    """
    # Ray Train asks its workers at this interval whether they are done: a training ends sooner.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    already = ray.is_initialized()
    if not already:
        _start(dashboard)
    try:
        if resources is not None:
            check_fits(resources, trains=trains)
        yield
    finally:
        if not already:
            ray.shutdown()


def _start(dashboard: bool) -> None:
    """Connect to the cluster, or start one. On a busy machine Ray may need several attempts."""
    for _ in range(STARTS):
        try:
            _init(dashboard)
            return
        except ConfigError:
            raise
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            _end_processes(error)
            reason = " ".join(str(error).split())
    raise ConfigError(
        f"Ray did not start in {STARTS} attempts ({reason}): run the command again when this "
        "machine is less busy; a command that has the option --local can run without Ray"
    )


def _init(dashboard: bool = False) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one if it names none.

    Raises ConfigError if no cluster answers there, or if it refuses this process.
    """
    if not check_answer():
        # On a machine of its own a training is not told that a node goes away while others remain.
        # Ray Train would start a process in every training that waits for such news.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Ray ends a process that has had no task for a second if there are more processes than
        # CPUs. A reader, which has a task now and then, would import torch again for each of them.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "300000")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's prints a trace of its own code
    except (ConnectionError, ValueError, RuntimeError) as error:
        if not names_cluster():
            raise
        raise _no_cluster(str(error).strip().partition("\n")[0]) from None


def names_cluster() -> bool:
    """Return whether a run would join a cluster that is there already, as Ray itself decides."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def check_answer() -> bool:
    """Check that a cluster answers at the address that RAY_ADDRESS names, if it names one.

    Ray itself would wait for minutes and then end the process. Without RAY_ADDRESS it joins the
    cluster that `ray start` has noted on this machine, also when that has died.

    Returns:
        Whether there is a cluster to join.

    Raises:
        ConfigError: if the head of no cluster answers within `ANSWER_WITHIN`.
    """
    if "://" in os.environ.get("RAY_ADDRESS", ""):
        return True  # of Ray Client, which waits for 30 s
    try:
        address = canonicalize_bootstrap_address(cast(Any, None))
        if address is not None:
            with init_grpc_channel(address) as channel:
                ask = channel.unary_unary("/grpc.health.v1.Health/Check")
                ask(b"", timeout=ANSWER_WITHIN, wait_for_ready=True)
        return address is not None
    except grpc.RpcError as error:
        told = f"{address} does not answer: {error.code().value[1]}"
        if names_cluster():
            raise _no_cluster(told) from None
        raise ConfigError(
            f"no cluster, although `ray start` has begun one here ({told}): run `ray stop`, or set "
            "RAY_ADDRESS=local to start another one"
        ) from None
    except (ConnectionError, ValueError) as error:
        raise _no_cluster(str(error)) from None


def _no_cluster(reason: str) -> ConfigError:
    return ConfigError(
        f"no cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} ({reason}): start it, or unset "
        "RAY_ADDRESS to run on this machine"
    )


def _end_processes(error: Exception) -> None:
    """End the processes of the node that has raised `error` as it started."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(node := frame.f_locals.get("self"), Node):
            node.kill_all_processes(check_alive=False)
            return


@dataclass(frozen=True)
class ClusterSize:
    """What a cluster has."""

    cpus: float
    gpus: float
    nodes: int


def ask_cluster(resources: Resources | None) -> tuple[ClusterSize, str]:
    """Ask the cluster that RAY_ADDRESS names what it has.

    Args:
        resources: what a run asks for, if there is one.

    Returns:
        What the cluster has, and why the run does not fit, which is empty if it does.

    Raises:
        ConfigError: if no cluster answers.
    """
    with _joined():
        there = ray.cluster_resources()
        size = ClusterSize(there.get("CPU", 0), there.get("GPU", 0), len(_nodes()))
        try:
            if resources:
                check_fits(resources)
        except ConfigError as error:
            return size, str(error)
        return size, ""


def nodes_without(folder: str) -> list[str]:
    """Return the addresses of the cluster's nodes that do not see what is written into a folder.

    Raises ConfigError if no cluster answers.
    """

    def sees(path: str) -> bool:
        return os.path.exists(path)

    with _joined(), tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
        asked = {
            node["NodeManagerAddress"]: ray.remote(sees)
            .options(num_cpus=0, scheduling_strategy=NodeAffinity(node["NodeID"], soft=False))
            .remote(probe.name)
            for node in ray.nodes()
            if node["Alive"]
        }
        return [address for address, answer in asked.items() if not ray.get(answer, timeout=60)]


@contextmanager
def _joined() -> Iterator[None]:
    """Be connected to the cluster that RAY_ADDRESS names. Raises ConfigError if none answers."""
    already = ray.is_initialized()
    if not already:
        _init()
    try:
        yield
    finally:
        if not already:
            ray.shutdown()


def check_fits(resources: Resources, *, trains: bool = True) -> None:
    """Raise ConfigError if steps, or with `trains` a training, need more than the cluster has.

    Without this check, a job that can never be placed would wait without a message.
    """
    there = ray.cluster_resources()
    actors, workers = resources.fewest_actors, resources.fewest_workers
    together = [actors_request(resources, actors)]
    each = [("actor", actors, actor_request(resources))]
    if trains:
        together.append(training_request(resources, workers))
        each.append(("worker", workers, worker_request(resources)))
    for asked in together:
        for kind, amount in asked.items():
            if amount > there.get(kind, 0) + 1e-6:
                raise ConfigError(
                    f"resources ask for {amount:g} {kind} at once, the cluster has "
                    f"{there.get(kind, 0):g}: lower resources.num_* or resources.*_per_*"
                )
    for what, number, asked in each:
        if number > (places := _places(asked)):
            amounts = " and ".join(f"{amount:g} {kind}" for kind, amount in asked.items() if amount)
            raise ConfigError(
                f"resources.num_{what}s asks for {number} of {amounts} each, the cluster's nodes "
                f"have room for {places} (each lies on one node): lower it or "
                f"resources.*_per_{what}"
            )


def fits_beside_training(resources: Resources, runs: int = 1) -> bool:
    """Return whether the actors may stay alive while a stage trains, in `runs` runs at once.

    On several machines the answer is always no: the actors may be placed so that no machine has
    room for a worker.
    """
    if len(_nodes()) > 1:
        return False
    there = ray.cluster_resources()
    train = training_request(resources, resources.most_workers)
    return all(
        runs * (amount + train.get(kind, 0)) <= there.get(kind, 0) + 1e-6
        for kind, amount in actors_request(resources, resources.most_actors).items()
    )


def runs_at_once(resources: Resources) -> int:
    """Return how many runs the cluster has room for, if none of them trains beside its actors.

    With more runs, each of them could hold a part of what every other one waits for.
    """
    there, passes, train = (
        ray.cluster_resources(),
        actors_request(resources, resources.most_actors),
        training_request(resources, resources.most_workers),
    )
    asked = {kind: max(amount, train.get(kind, 0)) for kind, amount in passes.items()}
    return min(
        int((there.get(kind, 0) + 1e-6) // amount) for kind, amount in asked.items() if amount > 0
    )


def _nodes() -> list[dict[str, float]]:
    """Return the resources of every living node that has a CPU."""
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [resources for resources in alive if resources.get("CPU", 0) > 0]


def _places(asked: dict[str, float]) -> int:
    """Return how many requests for `asked` fit on the nodes, if each must lie on one node."""
    return sum(
        min(int((node.get(kind, 0) + 1e-6) // amount) for kind, amount in asked.items() if amount)
        for node in _nodes()
    )


def actor_request(resources: Resources) -> dict[str, float]:
    """Return what one actor asks of Ray: amounts by the names of resources."""
    return {"CPU": resources.cpus_per_actor, "GPU": resources.gpus_per_actor}


def worker_request(resources: Resources) -> dict[str, float]:
    """Return what one training worker asks of Ray: amounts by the names of resources."""
    return {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}


def actors_request(resources: Resources, num_actors: int) -> dict[str, float]:
    """Return what some actors of the pool ask of Ray: amounts by the names of resources."""
    return {k: num_actors * amount for k, amount in actor_request(resources).items()}


def training_request(resources: Resources, num_workers: int) -> dict[str, float]:
    """Return what a training asks of Ray: amounts by the names of resources, "CPU" and "GPU".

    Args:
        resources: what is configured for one worker and for its readers.
        num_workers: the number of workers.
    """
    asked = {k: num_workers * amount for k, amount in worker_request(resources).items()}
    asked["CPU"] += num_workers * resources.readers_per_worker * resources.cpus_per_reader
    return asked


def cpus_here() -> int:
    """Return the number of CPUs that Ray counts on this machine, within a container's limit."""
    return int(get_num_cpus(override_docker_cpu_warning=True))

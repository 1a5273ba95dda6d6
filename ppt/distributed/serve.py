"""A trained stage as a service on Ray Serve: replicas that answer requests in batches.

`ppt serve` starts it, and `cluster/kuberay/rayservice.yaml` names `build`. The HTTP interface is
that of `ppt.serving.interface`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation

from ppt.config import ConfigError
from ppt.config.messages import one_line
from ppt.distributed.cluster import connected
from ppt.models.loaded import default_device
from ppt.serving.interface import Limits, segmentation_app
from ppt.serving.predictor import PicturePrediction, Predictor, Question
from ppt.serving.stored_checkpoint import StoredCheckpoint, open_checkpoint, with_weights

NAME = "ppt"
"""The name of the application and of its only deployment."""

BATCH_WAIT_S = 0.01
"""How long a replica that is free waits for more requests, in seconds."""

MAX_QUEUED_REQUESTS = 200
"""How many requests may wait for a replica; those beyond are answered with status 503."""

REQUEST_TIMEOUT_S = 120
"""How long a request may take, in seconds, before it is answered with status 408."""


class Service(BaseModel):
    """What is served, and by how many replicas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Path  # the folder of a finished run or of a checkpoint, as every node sees it
    stage: str | None = None
    clip_weights: Path | None = None
    sam_weights: Path | None = None
    num_replicas: int = Field(1, gt=0)
    cpus_per_replica: float = Field(1, ge=0)
    gpus_per_replica: float = Field(0, ge=0)
    max_batch_size: int = Field(8, gt=0)  # the most pictures in one pass of the model
    limits: Limits = Limits()

    def open(self) -> StoredCheckpoint:
        """Find the checkpoint. Raises ConfigError if it cannot be used."""
        stored = open_checkpoint(self.checkpoint, self.stage)
        return with_weights(stored, self.clip_weights, self.sam_weights)


@serve.deployment(name=NAME)
@serve.ingress()
class Replica:
    """One process with the model of a checkpoint."""

    def __init__(self, service: Service) -> None:
        device = default_device() if service.gpus_per_replica else "cpu"
        self._predictor = Predictor(service.open(), device)
        self._limits = service.limits
        self._segment.set_max_batch_size(service.max_batch_size)  # type: ignore[attr-defined]

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP interface; Ray Serve calls this after the constructor."""
        return segmentation_app(self._segment, self._predictor.checkpoint, self._limits)

    @serve.batch(batch_wait_timeout_s=BATCH_WAIT_S)
    async def _segment(self, questions: list[Question]) -> list[list[PicturePrediction]]:
        # In a thread, so that the replica still answers questions about its health.
        return await asyncio.to_thread(self._predictor.predict_pictures, questions)


def build(args: dict[str, Any]) -> serve.Application:
    """Return the application for the keys of a `Service`, as a RayService's `args` hold them."""
    try:
        return application(Service.model_validate(args))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"args: {place}: {first['msg']}") from None


def application(service: Service) -> serve.Application:
    """Return the application with its replicas, ready to be run."""
    return Replica.options(  # type: ignore[attr-defined]
        num_replicas=service.num_replicas,
        ray_actor_options={
            "num_cpus": service.cpus_per_replica,
            "num_gpus": service.gpus_per_replica,
        },
        max_ongoing_requests=2 * service.max_batch_size,  # one batch works, the next one gathers
        max_queued_requests=MAX_QUEUED_REQUESTS,
    ).bind(service)


@contextmanager
def serving(service: Service, host: str, port: int) -> Iterator[None]:
    """Serve a checkpoint during the block, on the cluster of RAY_ADDRESS or else a new one here.

    Raises ConfigError if the checkpoint cannot be used, or if the replicas do not fit.
    """
    Predictor(service.open())  # raises ConfigError for wrong weights before Ray starts
    # On a busy machine a new process is not ready within the 5 seconds that Ray Serve gives it.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    http = HTTPOptions(host=host, port=port, request_timeout_s=REQUEST_TIMEOUT_S)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    with connected():
        _check_fits(service)
        with _told():
            serve.start(ProxyLocation.HeadOnly, http, logging_config=quiet)
        try:
            with _told():
                serve.run(application(service), name=NAME, route_prefix="/", logging_config=quiet)
            yield
        finally:
            serve.delete(NAME)  # a cluster may serve other applications too


@contextmanager
def _told() -> Iterator[None]:
    """Raise ConfigError for what Ray Serve raises in the block."""
    try:
        yield
    except (RuntimeError, TimeoutError, RayError) as error:
        raise ConfigError(f"Ray Serve did not start: {one_line(str(error))}") from None


def _check_fits(service: Service) -> None:
    """Raise ConfigError if the replicas ask for more than the cluster has."""
    there = ray.cluster_resources()
    each = {"CPU": service.cpus_per_replica, "GPU": service.gpus_per_replica}
    for kind, amount in each.items():
        if service.num_replicas * amount > there.get(kind, 0) + 1e-6:
            raise ConfigError(
                f"num_replicas: {service.num_replicas} replicas of {amount:g} {kind} each, the "
                f"cluster has {there.get(kind, 0):g}: lower --num-replicas or "
                f"--{kind.lower()}s-per-replica"
            )

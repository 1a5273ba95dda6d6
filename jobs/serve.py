"""Serve a trained stage over HTTP, with Ray Serve.

ppt serve --checkpoint runs/quickstart
ppt serve --checkpoint runs/refcoco --num-replicas 4 --gpus-per-replica 1
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    ClipWeights,
    Host,
    Port,
    RunStage,
    SamWeights,
    TrainedRun,
    check_free,
    command,
    needs,
    required_run,
    run_alone,
)


@command
def main(
    checkpoint: TrainedRun = None,
    stage: RunStage = None,
    clip_weights: ClipWeights = None,
    sam_weights: SamWeights = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    num_replicas: Annotated[
        int, typer.Option(min=1, help="The number of processes that hold the model.")
    ] = 1,
    cpus_per_replica: Annotated[float, typer.Option(min=0, help="The CPUs of each replica.")] = 1,
    gpus_per_replica: Annotated[
        float, typer.Option(min=0, help="The GPUs of each replica, e.g. 0.5.")
    ] = 0,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="The most pictures in one pass of the model.")
    ] = 8,
    max_bytes: Annotated[
        int, typer.Option(min=1, help="The most bytes of a request.")
    ] = 16_000_000,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="The most pixels of a picture.")
    ] = 25_000_000,
    max_texts: Annotated[int, typer.Option(min=1, help="The most texts of a request.")] = 16,
) -> None:
    """Serve masks over HTTP with Ray Serve: a JSON interface, for programs."""
    checkpoint = required_run(checkpoint)
    with needs("serve"):
        from ppt.distributed.serve import Service, serving
        from ppt.serving.interface import Limits

    service = Service(
        checkpoint=checkpoint.absolute(),
        stage=stage,
        clip_weights=_absolute(clip_weights),
        sam_weights=_absolute(sam_weights),
        num_replicas=num_replicas,
        cpus_per_replica=cpus_per_replica,
        gpus_per_replica=gpus_per_replica,
        max_batch_size=max_batch_size,
        limits=Limits(max_bytes=max_bytes, max_pixels=max_pixels, max_texts=max_texts),
    )
    if "RAY_ADDRESS" not in os.environ:  # elsewhere it is the cluster's head that listens
        check_free(host, port)
    stopped = threading.Event()
    with serving(service, host, port):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        typer.echo(f"serving {checkpoint} at http://{host}:{port}/v1/segment; Ctrl-C ends it")
        stopped.wait()


def _absolute(path: Path | None) -> Path | None:
    return path and path.absolute()


if __name__ == "__main__":
    run_alone(main)

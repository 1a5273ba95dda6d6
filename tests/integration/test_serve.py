"""The service on a real Ray Serve, with two replicas and in batches: answers, limits, clients."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from common import PATIENCE, ROOT
from load import body_of, load
from typer.testing import CliRunner
from untrained_run import untrained_run

from ppt.config import ConfigError
from ppt.jobs.cli import app
from ppt.serving.predictor import Predictor

pytest.importorskip("grpc_reflection", reason="needs the extra serve")

from ppt.serving.interface import Limits

SCENE, TEXTS = ROOT / "docs" / "scene.png", ["the mushroom on the left", "house"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("serve") / "runs")


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def service(cluster: None, run: Path, port: int) -> Iterator[str]:
    from ray import serve

    from ppt.distributed.serve import Service, serving

    limits = Limits(max_bytes=60_000)
    two = Service(
        checkpoint=run, num_replicas=2, cpus_per_replica=0.5, max_batch_size=4, limits=limits
    )
    with serving(two, "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}"
    assert serve.status().applications == {}
    serve.shutdown()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_it_answers_as_the_predictor_does(service: str, port: int, run: Path) -> None:
    predictor = Predictor.from_checkpoint(run, device="cpu")
    digest = predictor.checkpoint.digest
    assert ask(port, "GET", "/health") == (200, {"status": "ok", "checkpoint": digest})
    status, answer = ask(port, "POST", "/v1/segment", body_of(SCENE.read_bytes(), TEXTS))
    assert status == 200
    for found, wanted in zip(answer["predictions"], predictor.predict(SCENE, TEXTS), strict=True):
        assert found["expression"] == wanted.text
        assert found["mask"] == wanted.as_dict()["mask"]


def test_what_is_wrong_is_told_through_ray_serve(service: str, port: int) -> None:
    for body, status, message in (
        (b"dog", 400, "the body is no JSON"),
        (b" " * 60_001, 413, "at most 60,000 bytes"),
        (body_of(b"dog", TEXTS), 422, "no known picture format"),
    ):
        found, answer = ask(port, "POST", "/v1/segment", body)
        assert found == status and message in answer["error"]
    assert ask(port, "GET", "/v1/segment")[0] == 405
    assert ask(port, "GET", "/else")[0] == 404


def test_no_request_of_many_clients_is_lost(service: str) -> None:
    body = body_of(SCENE.read_bytes(), TEXTS)
    found = load(service, body, len(TEXTS), clients=8, seconds=2)
    assert found.lost == [] and len(found.latencies) >= 8


def test_sigterm_ends_the_command_with_0(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    @contextmanager
    def serving(*_: object) -> Iterator[None]:
        yield
        ended.append(True)

    monkeypatch.setattr("ppt.distributed.serve.serving", serving)
    # The line that says where it serves is printed when the handlers are set.
    monkeypatch.setattr("typer.echo", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        other = free.getsockname()[1]
    try:
        result = CliRunner().invoke(app, ["serve", "--checkpoint", str(run), "--port", str(other)])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert result.exit_code == 0, result.output
    assert ended == [True]


def test_replicas_that_do_not_fit_are_told(cluster: None, run: Path, port: int) -> None:
    from ppt.distributed.serve import Service, build, serving

    many = Service(checkpoint=run, num_replicas=50)
    told = "50 replicas of 1 CPU each, the cluster has 2: lower"
    with pytest.raises(ConfigError, match=told), serving(many, "127.0.0.1", port):
        pass
    with pytest.raises(ConfigError, match="args: replicas: Extra inputs are not permitted"):
        build({"checkpoint": str(run), "replicas": 2})

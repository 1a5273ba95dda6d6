"""`ppt serve` on a real Ray Serve: several replicas and batches, answers, limits, and its end."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import ROOT
from load import body_of, load
from untrained_run import untrained_run

from ppt.serving.predictor import Predictor

pytest.importorskip("grpc_reflection", reason="needs the extra serve")

SCENE, TEXTS = ROOT / "docs" / "scene.png", ["the mushroom on the left", "house"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("serve") / "runs")


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def service(run: Path, port: int) -> Iterator[str]:
    command = [*(sys.executable, "-m", "ppt.jobs.cli", "serve", "--checkpoint", str(run))]
    options = ["--port", str(port), "--num-replicas", "2", "--cpus-per-replica", "0.5"]
    limits = ["--max-bytes", "60000", "--max-batch-size", "4"]
    process = subprocess.Popen([*command, *options, *limits], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith("serving "), line
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.stdout.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
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

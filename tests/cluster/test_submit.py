"""`ppt submit` against a real `ray start --head` that asks for a token."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import Result
from common import PATIENCE
from ray._private.runtime_env.packaging import create_package
from typer.testing import CliRunner

from ppt.distributed import submission as jobs
from ppt.jobs.cli import app

ROOT = Path(__file__).parents[2]
QUICKSTART = "curricula/quickstart.yaml"
FEW = [
    "num_buckets=2",
    *(f"data.{name}.num_pictures=4" for name in ("referring", "object_centric", "validation")),
    "data.evaluation.num_pictures=4",
    "resources.num_actors=1",
]
TOKEN = "a-token-of-this-test-and-of-nothing-else"
CLUSTER_FOLDER = "PPT_TEST_CLUSTER_FOLDER"


def _free_ports(number: int) -> list[int]:
    """Return ports that are free and differ: all are held until the last one is found."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The dashboard of a cluster of this machine: free ports, its own folder, ended by its pids."""
    folder = tempfile.mkdtemp(prefix="ppt-")  # short: it holds Unix sockets
    gcs, port, clients, agent = _free_ports(4)
    environment = dict(os.environ)
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        CLUSTER_FOLDER: folder,
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
    }
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "PYTHONPATH"):
        environment.pop(name, None)
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
        *("--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
        *(f"--port={gcs}", f"--dashboard-port={port}"),
        *("--min-worker-port=0", "--max-worker-port=0"),
        f"--ray-client-server-port={clients}",
        f"--dashboard-agent-listen-port={agent}",
    ]
    log = Path(folder, "start.log")
    with log.open("w") as out:
        head = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=folder)
    try:
        _until(lambda: _listens(port), head, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        for pid in _processes_of(folder):  # told to end, `ray start --block` takes ten seconds
            os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: str) -> list[int]:
    """The processes of the cluster: its folder stands in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{CLUSTER_FOLDER}={folder}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(condition, process: subprocess.Popen, log: Path) -> None:
    while not condition():
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the repository, with the token in the environment and nothing else of Ray's."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # `connect` sets it: undone after the test
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def _submit(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["submit", *map(str, arguments)])


def _start(address: str, *arguments: object) -> str:
    """Start a job and come back; its id."""
    result = _submit("--address", address, "--no-wait", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


# ---------------------------------------------------------------- on a cluster


def test_a_job_runs_and_its_log_and_exit_code_come_back(address: str, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    result = _submit("--address", address, "prepare", QUICKSTART, *FEW, f"store={store}")
    assert result.exit_code == 0, result.output
    assert "samples.referring" in result.stdout  # the table that prepare prints at its end
    assert len(list(store.glob("store/samples/*/manifest.json"))) == 4
    assert f"ppt submit --address {address} --stop raysubmit_" in result.stderr


def test_a_jobs_own_exit_code_comes_back(address: str, tmp_path: Path) -> None:
    """2 for what the job finds to be the user's mistake, 1 for a crash."""
    mistake = ("prepare", QUICKSTART, *FEW, f"store={tmp_path}", "resources.cpus_per_actor=64")
    started = _start(address, *mistake)
    crashed = jobs.connect(address).submit_job(entrypoint="python -c 1/0")
    results = [_submit("--address", address, "--follow", name) for name in (started, crashed)]
    assert [result.exit_code for result in results] == [2, 1]
    assert "resources ask for 64 CPU" in " ".join(results[0].stdout.split())
    assert "Traceback" not in results[0].stdout
    assert "ZeroDivisionError" in results[1].stdout


def test_ctrl_c_leaves_the_job_running_and_stop_stops_it(address: str, tmp_path: Path) -> None:
    many = [*FEW, "data.referring.num_pictures=100000", f"store={tmp_path}"]
    name = _start(address, "prepare", QUICKSTART, *many, "--local")
    follower = subprocess.Popen(
        [sys.executable, "-m", "ppt.jobs.submit", "--address", address, "--follow", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs pytest in the background has Ctrl-C ignored, also in what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    client = jobs.connect(address)
    assert follower.stdout and follower.stdout.readline()  # it follows
    while client.get_job_status(name) == "PENDING":
        time.sleep(0.2)
    follower.send_signal(signal.SIGINT)
    _, error = follower.communicate(timeout=PATIENCE)
    assert follower.returncode == 130
    assert f"{name} goes on: ppt submit --address {address} --follow {name}" in error
    assert client.get_job_status(name) == "RUNNING"

    stopped = _submit("--address", address, "--stop", name)
    assert (stopped.exit_code, stopped.stderr.strip()) == (0, f"{name} is stopped")
    assert client.get_job_status(name) == "STOPPED"
    assert _submit("--address", address, "--follow", name).exit_code == 128 + signal.SIGTERM
    assert "had ended before" in _submit("--address", address, "--stop", name).stderr


def test_an_unknown_job_is_the_users_mistake(address: str) -> None:
    for option in ("--stop", "--follow"):
        result = _submit("--address", address, option, "raysubmit_none")
        assert result.exit_code == 2
        assert "no job 'raysubmit_none' on this cluster" in result.stderr


@pytest.mark.parametrize("token", ["", "another-token"])
def test_without_its_token_a_cluster_takes_nothing(
    address: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    result = _submit("--address", address, "prepare", QUICKSTART, "store=/nowhere")
    assert result.exit_code == 2
    assert "give it by RAY_AUTH_TOKEN" in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


# ---------------------------------------------------------------- without one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", QUICKSTART], r"store: 'runs' is relative: .* store=s3://bucket/runs"),
        (["prepare", QUICKSTART, "seed=many"], "seed: input should be a valid integer"),
        (["prepare", "constraints.txt", "store=/x"], "must hold a mapping"),
        (["prepar", QUICKSTART], "unknown command 'prepar': give one of prepare, encode"),
        (["submit", "prepare", QUICKSTART], "unknown command 'submit'"),
        (["select", QUICKSTART, "store=/x", "--aftr", "y"], "No such option: --aftr"),
        ([], "give a command"),
        (["--stop", "raysubmit_1", "prepare", QUICKSTART], "give a command"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(words: list[str], message: str) -> None:
    result = _submit(*words)
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split()))
    assert "Traceback" not in result.output


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_no_cluster_is_the_users_mistake(scheme: str) -> None:
    (port,) = _free_ports(1)
    nobody = f"127.0.0.1:{port}"
    result = _submit("--address", scheme + nobody, "prepare", QUICKSTART, "store=/shared/runs")
    assert result.exit_code == 2
    assert f"no cluster answers at http://{nobody}" in result.stderr
    assert "Traceback" not in result.output


def test_a_curriculum_outside_of_the_working_directory_cannot_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _submit("prepare", ROOT / QUICKSTART, "store=/shared/runs")
    assert result.exit_code == 2
    assert "lies outside of" in result.stderr


def test_what_is_sent_is_small_and_whole(tmp_path: Path) -> None:
    """Ray's own packer over a copy of the repository's folders, with data and runs beside them."""
    folder = tmp_path / "checkout"
    for name in ("ppt", "jobs", "curricula", "tests/unit"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("runs/a.bin", "data/a.jpg", ".git/x", ".venv/x", "ppt/__pycache__/x.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    package = tmp_path / "package.zip"
    excludes = [*jobs.LEFT_BEHIND, ".git", ".venv", "__pycache__"]
    create_package(str(folder), package, include_gitignore=True, excludes=excludes)
    sent = set(zipfile.ZipFile(package).namelist())
    source = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ppt").rglob("*.py")}
    assert source <= sent
    assert {QUICKSTART, "jobs/cli.py"} <= sent
    assert any(name.startswith("ppt/toybox/weights/") for name in sent)
    left = ("runs/", "data/", ".git/", ".venv/", "tests/")
    assert not [name for name in sent if name.startswith(left) or "__pycache__" in name]
    assert package.stat().st_size < 10e6

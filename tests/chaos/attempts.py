"""Commands that are run in processes of their own, and what they have stored."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.hook import below, install
from ppt.training.stage import EPOCHS

HERE = Path(__file__).parent
TESTS = HERE.parent
PATIENCE = 1200.0
"""The seconds after which a command counts as one that hangs, also on a busy machine."""


@dataclass
class Attempt:
    """How a command ended."""

    code: int  # negative: the number of the signal that ended it
    output: str  # what it wrote to both streams
    hung: bool = False

    @property
    def errors(self) -> list[str]:
        """The lines that say what went wrong."""
        return [line for line in self.output.splitlines() if line.startswith("error:")]

    def fault(self, codes: Iterable[int]) -> str | None:
        """Return what is wrong with the end; None if it is one of `codes`, told in one line."""
        if self.hung:
            return f"hung for {PATIENCE:.0f} s"
        if "Traceback" in self.output:
            last = [line for line in self.output.splitlines() if line.strip()][-1]
            return f"a traceback (exit code {self.code}): {last}"
        if self.code not in codes:
            return f"exit code {self.code}: {self.output.strip()[-300:]}"
        if self.code == 2 and len(self.errors) != 1:
            return f"{len(self.errors)} lines of error instead of one"
        return None


Wait = Callable[[], Attempt]
"""Waits for the end of a command."""


def in_fork(arguments: list[str], plan: dict[str, Any], folder: Path) -> Wait:
    """Start a command in a fork of this process, which saves the imports."""
    environment = _environment(plan, folder)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            os.dup2(write, 1)
            os.dup2(write, 2)
            os.environ.update(environment)
            install()
            from ppt.jobs.cli import app

            app(arguments, prog_name="ppt")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(write)

    def wait() -> Attempt:
        with os.fdopen(read, errors="replace") as stream:
            output = stream.read()
        _, status = os.waitpid(pid, 0)
        return Attempt(os.waitstatus_to_exitcode(status), output)

    return wait


def in_process(arguments: list[str], plan: dict[str, Any], folder: Path) -> Wait:
    """Start a command in a new process, whose processes of Ray have the hook too."""
    environment = {**os.environ, **hooked(plan, folder), "RAY_ADDRESS": "local"}
    number, name = tempfile.mkstemp(prefix="log-", dir=folder)
    os.close(number)
    log = Path(name)
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ppt.jobs.cli", *arguments],
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )

    def wait() -> Attempt:
        started, family, hung = time.monotonic(), set[int](), False
        while process.poll() is None:
            family |= below(process.pid).keys()
            hung = time.monotonic() - started > PATIENCE
            if hung:
                process.kill()
            time.sleep(0.5)
        _end(family)
        return Attempt(process.returncode, log.read_text(errors="replace"), hung)

    return wait


def _end(pids: set[int]) -> None:
    """End what a killed command has left of its Ray; Ray itself takes up to a minute for it."""
    mine = str(os.environ["CHAOS_HOME"]).encode()
    for pid in pids:
        with suppress(OSError):
            if mine in Path(f"/proc/{pid}/environ").read_bytes():
                os.kill(pid, signal.SIGKILL)


def hooked(plan: dict[str, Any], folder: Path) -> dict[str, str]:
    """Return the variables that give new processes, and all that they start, the hook."""
    path = os.pathsep.join(map(str, (HERE / "site", TESTS, TESTS.parent)))
    return {**_environment(plan, folder), "PYTHONPATH": path}


def _environment(plan: dict[str, Any], folder: Path) -> dict[str, str]:
    number, path = tempfile.mkstemp(prefix="plan-", dir=folder)
    os.close(number)
    Path(path).write_text(json.dumps(plan))
    return {"CHAOS_PLAN": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "1000"}


# ---------------------------------------------------------------- what is stored


_TIMED = ("seconds", "checksum", "versions")


def contents(store: Path) -> dict[str, Any]:
    """Return the content of every finished file of nodes and results by name.

    Seconds are left out of manifests and summaries, and so is what tells when epochs were trained.
    """
    found = dict[str, Any]()
    results = [store / "chaos" / "summary.json", *(store / "chaos" / "results").rglob("*")]
    for path in [*(store / "store").rglob("*"), *results]:
        name = str(path.relative_to(store))
        if not path.is_file() or path.name.startswith(".") or "/epoch-" in name:
            continue
        found[name] = path.read_bytes()
        if path.suffix == ".json":
            with suppress(ValueError):  # it is damaged
                found[name] = _without_times(json.loads(found[name]))
    return found


def _without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_times(value) for key, value in tree.items() if key not in _TIMED}
    return [_without_times(value) for value in tree] if isinstance(tree, list) else tree


def differences(store: Path, expected: dict[str, Any], *, finished: bool) -> list[str]:
    """Return a line for each file that is not that of the undisturbed run, or is missing.

    The last epochs of unfinished trainings, of which the undisturbed run has none any more, are not
    compared; what is made of them is.
    """
    found = {name: held for name, held in contents(store).items() if f"/{EPOCHS}/" not in name}
    told = [f"{name} differs" for name in found if found[name] != expected.get(name)]
    if finished:
        told += [f"{name} is missing" for name in expected if name not in found]
    return told


def logged_twice(store: Path) -> list[str]:
    """Return a line for each metric, run or experiment that MLflow's database has twice."""
    queries = {
        "experiment": "SELECT name FROM experiments GROUP BY name HAVING count(*) > 1",
        "run": "SELECT name FROM runs GROUP BY name HAVING count(*) > 1",
        "metric": "SELECT key FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1",
    }
    with closing(sqlite3.connect(store / "chaos" / "mlflow.db")) as database:
        return [
            f"MLflow has the {what} {name} twice"
            for what, query in queries.items()
            for (name,) in database.execute(query)
        ]


def leftovers(store: Path) -> list[str]:
    """Return the temporary files and folders of a store."""
    temporary = re.compile(r"\.|tmp")
    return [
        str(path.relative_to(store))
        for path in store.rglob("*")
        if temporary.match(path.name) and "mlartifacts" not in path.parts
    ]

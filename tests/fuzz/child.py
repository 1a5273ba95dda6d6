"""A child process that tries inputs one after another, and is ended when it crashes or hangs."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from fuzz.cases import read_about

SECONDS = 10.0
"""The time that an input may take on the processor, or wait for something else than it."""

MEMORY = 6 * 2**30
"""The bytes of address space that an input may take beside what the libraries have."""

PRELOADED = ["fuzz.kinds", "ppt.jobs.cli", "ppt.curriculum.run"]
"""What every child process needs is imported once, by the server from which it is forked."""


@dataclass(frozen=True)
class Tried:
    """What came of an input: an outcome, or `failed` with the reason."""

    outcome: str
    told: str = ""


class Child:
    """Tries inputs in another process, which lives until an input breaks it."""

    def __init__(self, run: Path, module: str = "fuzz.kinds", seconds: float = SECONDS) -> None:
        """`run` is the folder of a finished run, `module` has the `KINDS` of inputs."""
        self._run, self._module, self._seconds = run, module, seconds
        self._process: multiprocessing.process.BaseProcess | None = None

    def try_one(self, kind: str, folder: Path) -> Tried:
        """Check the input of a folder."""
        if self._process is None:
            self._start()
        assert self._process is not None
        self._pipe.send((kind, folder))
        if fault := self._wait(self._process):
            self.close()
            return Tried("failed", fault)
        try:
            return self._pipe.recv()
        except EOFError:  # it died just now
            self._process.join()
            fault = f"the process died with exit code {self._process.exitcode}"
            self.close()
            return Tried("failed", fault)

    def _wait(self, process: multiprocessing.process.BaseProcess) -> str | None:
        """Wait for an answer. Returns what is wrong if none will come.

        Time counts only while the process computes or waits for something else than a processor,
        because the machine may be busy with other things.
        """
        watched = psutil.Process(process.pid)
        first = last = _seconds(watched)
        asleep_since = time.monotonic()
        while not self._pipe.poll(0.1):
            if not process.is_alive():
                return f"the process died with exit code {process.exitcode}"
            now, asleep = _seconds(watched), _is_asleep(watched)
            if not asleep or now > last:
                asleep_since = time.monotonic()
            last = now
            if now - first > self._seconds:
                return f"it takes more than {self._seconds:g} seconds"
            if time.monotonic() - asleep_since > self._seconds:
                return f"it waits for more than {self._seconds:g} seconds"
        return None

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, self._run, self._module), daemon=True
        )
        self._process.start()
        other.close()
        self._pipe.recv()  # it has imported everything

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0


def _is_asleep(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() in (psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP)
    return True


def _serve(pipe: Connection, run: Path, module: str) -> None:
    """Check what comes through the pipe, until the other side is closed."""
    os.environ["COLUMNS"] = "4000"  # lines as they are, not as a terminal breaks them
    kinds = importlib.import_module(module).KINDS
    warnings.simplefilter("ignore")
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with open(os.devnull, "w") as nowhere:  # decoders print by themselves
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    pipe.send("ready")
    while True:
        try:
            kind, folder = pipe.recv()
        except EOFError:
            return
        try:
            outcome = kinds[kind].check(folder, read_about(folder), run)
            pipe.send(Tried(outcome))
        except BaseException as error:
            # `\ud800` cannot be printed, and a message may be long.
            text = "".join(traceback.format_exception(error))[-4_000:]
            pipe.send(Tried("failed", text.encode(errors="backslashreplace").decode()))

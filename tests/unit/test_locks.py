"""Locks of a store: one process at a time, and none that is dead."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from common import PATIENCE

from ppt.steps.progress import print_waiting
from ppt.store.locks import LOCKS, in_use, locked
from ppt.store.nodes import Store

HOLD = """
import sys, time
from ppt.store.locks import locked
from ppt.store.nodes import Store
with locked(Store(sys.argv[1]), "node", lambda: None):
    print("held", flush=True)
    sys.stdin.readline()
"""


def nothing() -> None:
    pass


def hold(store: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until it reads a line, or dies."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("dies", [False, True], ids=["ends", "dies"])
def test_waits_for_another_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], dies: bool
) -> None:
    other, entered = hold(tmp_path), threading.Event()
    store = Store(str(tmp_path))

    def enter() -> None:
        with locked(store, "node", partial(print_waiting, "a stage")):
            entered.set()

    with locked(store, "other node", partial(print_waiting, "nothing")):
        thread = threading.Thread(target=enter)
        thread.start()
        told = ""
        while "a stage: another run is making this, waiting" not in told:
            told += capfd.readouterr().err.replace("\n", " ")
        assert not entered.is_set()
        if dies:
            other.send_signal(signal.SIGKILL)
        else:
            other.communicate("\n")
        thread.join(PATIENCE)
        assert entered.is_set()
    assert other.wait() == (-signal.SIGKILL if dies else 0)
    assert list((tmp_path / LOCKS).iterdir()) == []
    assert "nothing" not in told


def test_many_at_once_come_in_turn(tmp_path: Path) -> None:
    inside, most, entered = 0, 0, 0

    def enter() -> None:
        nonlocal inside, most, entered
        for _ in range(20):
            with locked(Store(str(tmp_path)), "node", nothing):
                inside += 1
                most, entered = max(most, inside), entered + 1
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entered) == (1, 160)
    assert list((tmp_path / LOCKS).iterdir()) == []


def test_a_store_is_used_together_or_alone(tmp_path: Path) -> None:
    store, waited = Store(str(tmp_path)), list[str]()
    alone = threading.Event()

    def remove() -> None:
        with in_use(store, lambda: waited.append("for the others"), alone=True):
            alone.set()

    with ExitStack() as first, ExitStack() as second:
        for stack in (first, second):
            stack.enter_context(in_use(store, lambda: waited.append("never")))
        thread = threading.Thread(target=remove)
        thread.start()
        first.close()
        while not waited:
            thread.join(0.01)
        assert not alone.is_set()
    thread.join(PATIENCE)
    assert alone.is_set()
    assert waited == ["for the others"]
    assert list((tmp_path / LOCKS).iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    store = Store(str(tmp_path / "runs"))
    with in_use(store, nothing):
        pass
    with pytest.raises(OSError), in_use(store, nothing, alone=True):
        pass


def test_a_store_behind_a_url_has_no_locks() -> None:
    store = Store("memory://ppt-locks")
    with locked(store, "node", nothing), locked(store, "node", nothing):
        assert not store.fs.exists(f"{store.path}/{LOCKS}")

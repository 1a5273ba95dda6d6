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
    assert list((tmp_path / LOCKS).glob("*")) == []
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
    assert list((tmp_path / LOCKS).glob("*")) == []


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
    assert list((tmp_path / LOCKS).glob("*")) == []


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


@pytest.mark.parametrize("shared", [True, False])
def test_what_was_made_for_a_lock_is_removed(tmp_path: Path, shared: bool) -> None:
    store = Store(str(tmp_path / "a" / "runs"))
    with in_use(store, nothing, alone=not shared):
        assert (tmp_path / "a" / "runs" / LOCKS / "in-use").is_file()
    assert list(tmp_path.iterdir()) == []
    with in_use(store, nothing, alone=not shared):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    (tmp_path / "a" / "runs").mkdir()  # by somebody else, so it stays
    with in_use(store, nothing, alone=not shared):
        pass
    assert list((tmp_path / "a" / "runs").iterdir()) == []


def test_a_lock_waits_in_a_folder_that_another_one_removes(tmp_path: Path) -> None:
    """The one who waits has the lock in a folder that is there, which a third one sees."""
    store, held, entered = Store(str(tmp_path / "runs")), threading.Event(), threading.Event()
    go_on = threading.Event()

    def enter() -> None:
        with locked(store, "node", held.set):
            entered.set()
            go_on.wait(PATIENCE)

    with locked(store, "node", nothing):
        thread = threading.Thread(target=enter)
        thread.start()
        assert held.wait(PATIENCE)
    assert entered.wait(PATIENCE)
    assert (tmp_path / "runs" / LOCKS / "node").is_file()
    go_on.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_store_behind_a_url_has_no_locks() -> None:
    store = Store("memory://ppt-locks")
    with locked(store, "node", nothing), locked(store, "node", nothing):
        assert not store.fs.exists(f"{store.path}/{LOCKS}")

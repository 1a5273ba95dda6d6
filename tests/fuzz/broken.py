"""Kinds whose check fails in every way that there is: the child process itself is tried by them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.cases import Input, Kind, Outcome


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _leave() -> None:
    os._exit(0)


def _compute() -> None:
    while True:
        pass


def _wait() -> None:
    time.sleep(1_000)


def _fill() -> None:
    _ = bytes(2**40)


def _assert() -> None:
    raise AssertionError("other pixels \ud800")


def _kind(act: Callable[[], None]) -> Kind:
    def check(folder: Path, about: dict[str, Any], run: Path) -> Outcome:
        act()
        return "right"

    return Kind(lambda run: st.just(Input({"a": b"1"})), check)


KINDS = {
    "fine": _kind(lambda: None),
    "crash": _kind(_crash),
    "leave": _kind(_leave),
    "compute": _kind(_compute),
    "wait": _kind(_wait),
    "fill": _kind(_fill),
    "assert": _kind(_assert),
}

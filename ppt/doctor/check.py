"""The result of a check, which is one line of `ppt doctor`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "missing", "wrong"]
"""`missing` and `wrong` stop a run: what it needs is not there, or is not what it should be."""


@dataclass(frozen=True)
class Check:
    """The result of a check."""

    name: str  # what was checked
    state: State
    found: str
    todo: str = ""  # what to do about it

    @property
    def stops(self) -> bool:
        """True if the curriculum cannot run with this result."""
        return self.state in ("missing", "wrong")


def guarded(name: str, check: Callable[[], Check], *, otherwise: State) -> Check:
    """Make a check. An exception in it becomes a result of state `otherwise`."""
    try:
        return check()
    except Exception as error:  # a library may raise anything on broken input
        said = (str(error).splitlines() or [""])[0]
        return Check(name, otherwise, f"could not be looked at: {type(error).__name__}: {said}")

"""One line of what the doctor says, and a check that never ends the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "missing", "wrong"]
"""`missing` and `wrong` stop a run: what it needs is not there, or is something else."""


@dataclass(frozen=True)
class Check:
    """What was looked at, how it stands, what was found, and what to do about it."""

    name: str
    state: State
    found: str
    todo: str = ""

    @property
    def stops(self) -> bool:
        """Whether the curriculum cannot run like this."""
        return self.state in ("missing", "wrong")


def guarded(name: str, check: Callable[[], Check], *, otherwise: State) -> Check:
    """`check()`; what it raises becomes a line too, for the other checks are worth having."""
    try:
        return check()
    except Exception as error:  # whatever broken input makes of a library
        said = (str(error).splitlines() or [""])[0]
        return Check(name, otherwise, f"could not be looked at: {type(error).__name__}: {said}")

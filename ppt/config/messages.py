"""Values and the names of keys as texts for messages: on one line and not too long."""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

MAX_LINES = 100
"""The most wrong keys that are told at once."""

MAX_LENGTH = 1_000
"""The most characters of a line that tells something to a user."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class _Shown(reprlib.Repr):
    """Writes values in Python's notation, but texts that are numbers without quotes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 100, 100

    def repr_str(self, x: str, level: int) -> str:
        is_short_number = len(x) <= self.maxstring and _NUMBER.fullmatch(x)
        return x if is_short_number else super().repr_str(x, level)


_SHOWN = _Shown()


def shown(value: Any) -> str:
    """Return a value as it is written in a message; values of a YAML file are texts."""
    try:
        return _SHOWN.repr(value)
    except ValueError:  # Python refuses to write numbers of several thousand digits
        return f"a {type(value).__name__} of many digits"


def place_of(parts: Iterable[Any]) -> str:
    """Return the dotted name of a key; characters that cannot be printed are escaped."""
    place = ".".join(str(part) for part in parts)
    return place if place.isprintable() and len(place) <= 200 else shown(place)[1:-1]


def near(word: str, known: Collection[str], group: Iterable[Any] = ()) -> str:
    """Return the end of a message about an unknown name: the nearest known one, if one is near.

    With `group`, the name is written as that of a key in this group.
    """
    word = word[:100]
    found = get_close_matches(word, known, n=1) or [k for k in known if _stands_for(word, k)][:1]
    return f": did you mean {place_of([*group, *found])}?" if found else ""


def _stands_for(word: str, name: str) -> bool:
    """Return whether a word is a part of a name, or its initials, as `lr` of `learning_rate`."""
    parts = [part for part in re.split(r"[\W_]+", name) if part]
    initials = "".join(part[0] for part in parts)
    return word in parts or (len(word) > 1 and word == initials) or (len(word) > 3 and word in name)


def one_line(text: str) -> str:
    """Return a text as one line of at most `MAX_LENGTH` characters.

    Line breaks, other control characters and halves of surrogate pairs are escaped, so that names
    and texts from data cannot steer a terminal. Of a long text the middle is left out.
    """
    escaped = "".join(
        repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c
        for c in _shortened(text)
    )
    return _shortened(escaped)


def _shortened(text: str) -> str:
    if len(text) <= MAX_LENGTH:
        return text
    half = MAX_LENGTH // 2
    return f"{text[:half]} ... {text[5 - half :]}"

"""The interface of data sets: keys of pictures, samples, and separately the ground truth.

`read` returns what training may see. The masks of people are returned by `read_ground_truth` only,
and `fingerprint` does not depend on them, so that no change of a mask changes a sample.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ppt.config import ConfigError, Data, DataFormat

MAX_CHARACTERS = 10_000
"""The most characters of an expression that is accepted (our choice)."""


@dataclass(frozen=True)
class RawExpression:
    """A referring expression."""

    expression_id: str  # unique in its source
    text: str  # before `split_expressions` whatever the data set holds in its place
    kind: str | None = None  # for example class, colour, position, relation; None if not known


@dataclass(frozen=True)
class Rejected:
    """An expression that cannot be used, and why."""

    expression_id: str
    reason: str


@dataclass(frozen=True)
class RawPicture:
    """A picture with the name of its class or with its expressions."""

    image: bytes  # an encoded picture that `check_picture` accepts
    class_name: str | None  # of an object-centric picture; otherwise None
    expressions: list[RawExpression] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


@dataclass(frozen=True)
class RawMask:
    """The ground truth of one expression."""

    expression_id: str
    kind: str | None  # as of `RawExpression`
    mask: np.ndarray  # bool [height, width] of the upright picture, with at least one pixel

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of the mask."""
        return self.mask.shape


class Source(Protocol):
    """A data set. Each picture has a unique key."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the samples depend on, but not of human-drawn masks."""

    @property
    def ground_truth_fingerprint(self) -> str:
        """A hash of all that the ground truth depends on; ValueError if there can be none."""

    @property
    def note(self) -> str | None:
        """A remark for the user, for example that a part of the data set is missing, or None."""

    def keys(self) -> list[str]:
        """The keys of the pictures, always in the same order."""

    def num_expressions(self, key: str) -> int:
        """The number of expressions of a picture, with those that will be rejected."""

    def file_size(self, key: str) -> int | None:
        """The bytes of a picture's file: None if it is missing, 0 if the picture is drawn."""

    def read(self, key: str) -> RawPicture:
        """Read one picture with the expressions that can be used and those that are rejected.

        Raises:
            UnreadablePicture: the picture cannot be used.
        """

    def read_ground_truth(self, key: str) -> tuple[list[RawMask], list[Rejected]]:
        """Read the masks of a picture's expressions, and tell which have no usable mask.

        Expressions that `read` rejects are in neither list; an unreadable picture rejects all.
        """


@functools.cache
def open_source(data: DataFormat) -> Source:
    """Return the data set that a configuration describes. A process reads its index only once."""
    return data.open()


WITH_TRUTH = ("validation", "evaluation")
"""The data sets that must have a ground truth."""


def check_data_sets(data: Data) -> None:
    """Open every data set of a curriculum; no picture is read.

    Raises ConfigError, which has a line for each data set that cannot be used.
    """
    faults = []
    for name in type(data).model_fields:
        try:
            source = open_source(getattr(data, name))
            if name in WITH_TRUTH:
                _ = source.ground_truth_fingerprint  # raises ValueError if there can be none
        except Exception as error:  # an index of another form than expected may raise any
            faults.append(f"data.{name}: {told(error)}")
    if faults:
        raise ConfigError("\n".join(faults))


def told(error: Exception) -> str:
    """Return one line about an error, with its type if its message is not for users."""
    message = " ".join(str(error).split())
    foreseen = isinstance(error, (ValueError, OSError)) and message
    return message if foreseen else f"cannot be opened ({type(error).__name__}: {message})"


def split_expressions(
    expressions: Iterable[RawExpression],
) -> tuple[list[RawExpression], list[Rejected]]:
    """Strip the texts of expressions, and reject those that cannot be used.

    Rejected are what is no text, text of more than `MAX_CHARACTERS`, text that holds half of a
    surrogate pair and so cannot be stored, and text without a letter or digit. Kept texts are in
    Unicode's form NFC, in which an accented letter is one character.
    """
    kept, rejected = [], []
    for expression in expressions:
        try:
            text = _checked_text(expression.text)
        except ValueError as error:
            rejected.append(Rejected(expression.expression_id, str(error)))
        else:
            kept.append(RawExpression(expression.expression_id, text, expression.kind))
    return kept, rejected


def _checked_text(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"expression is no text: {reprlib.repr(text)}")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"expression has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    if not is_unicode(text):
        raise ValueError(f"expression {text!r} is no valid Unicode text")
    text, given = unicodedata.normalize("NFC", text).strip(), text
    if not any(c.isalnum() for c in text):
        raise ValueError(f"expression {given!r} has no word")
    return text


def is_unicode(text: str) -> bool:
    """Return whether a text can be stored in UTF-8; one with half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def group_reasons(reasons: Iterable[tuple[str, int]]) -> list[tuple[int, str]]:
    """Group reasons that differ only in names and numbers.

    Args:
        reasons: each reason with the number of expressions that it concerns.

    Returns:
        The number of expressions and one example of each group, the largest group first.
    """
    times, examples = Counter[str](), dict[str, str]()
    for reason, number in reasons:
        alike = re.sub(r"'[^']*'|\S*[\d./]\S*", "", reason)
        times[alike] += number
        examples.setdefault(alike, reason)
    return [(number, examples[alike]) for alike, number in times.most_common()]


def fingerprint_of(parts: Iterable[Any]) -> str:
    """Return the SHA-256 of plain data, which is hashed part by part as JSON.

    Raises ValueError if a part is nested too deeply.
    """
    digest = hashlib.sha256()
    for part in parts:
        try:
            text = json.dumps(part, sort_keys=True)
        except RecursionError:
            raise ValueError(f"is nested too deeply: {reprlib.repr(part)}") from None
        digest.update(text.encode())
        digest.update(b"\n")
    return digest.hexdigest()

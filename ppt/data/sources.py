"""What every data set looks like to the pipeline: keys, samples, and ground truth apart from them.

`read` gives what training may see. People's masks come from `read_ground_truth` alone, and
`fingerprint` does not depend on them: noise in place of every mask changes no sample.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ppt.config import (
    ImageFolderData,
    MiniImageNetData,
    ReferData,
    TableData,
    ToyboxObjects,
    ToyboxScenes,
)
from ppt.data.pictures import UnreadablePicture

__all__ = [
    "AnyData",
    "RawExpression",
    "RawMask",
    "RawPicture",
    "Rejected",
    "Source",
    "UnreadablePicture",
    "fingerprint_of",
    "group_reasons",
    "open_source",
]

AnyData = ReferData | TableData | ToyboxScenes | ImageFolderData | MiniImageNetData | ToyboxObjects


@dataclass(frozen=True)
class RawExpression:
    """A referring expression as people wrote it, outer spaces stripped."""

    expression_id: str  # unique in its source
    text: str
    kind: str | None = None  # class, colour, position, relation; None if nobody knows


@dataclass(frozen=True)
class Rejected:
    """An expression that cannot be used, and why."""

    expression_id: str
    reason: str


@dataclass(frozen=True)
class RawPicture:
    """An encoded picture that `check_picture` accepts, with its class or its expressions."""

    image: bytes
    class_name: str | None  # object-centric pictures only
    expressions: list[RawExpression] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


@dataclass(frozen=True)
class RawMask:
    """The ground truth of one expression: bool [height, width] at the original size."""

    expression_id: str
    kind: str | None
    mask: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.mask.shape


class Source(Protocol):
    """A data set. Keys are unique and come in a fixed order."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that the samples depend on; people's annotations are no part of it."""

    @property
    def ground_truth_fingerprint(self) -> str:
        """Hash of all that the ground truth depends on; `ValueError` where there can be none."""

    @property
    def note(self) -> str | None:
        """What a user should know before hours are spent: that a data set is partial, say."""

    def keys(self) -> list[str]:
        """The pictures' keys."""

    def num_expressions(self, key: str) -> int:
        """How many expressions the index lists for a picture, broken ones too; no file is read."""

    def file_size(self, key: str) -> int | None:
        """Bytes of a picture's file, None where it is missing; 0 for a picture that is drawn."""

    def read(self, key: str) -> RawPicture:
        """One picture; raises `UnreadablePicture`. Expressions without a word are in `rejected`."""

    def read_ground_truth(self, key: str) -> tuple[list[RawMask], list[Rejected]]:
        """The masks of a picture's expressions, and the expressions that have no usable one."""


def open_source(config: AnyData) -> Source:
    """The source of a data configuration; errors name the field and the path that is wrong."""
    match config:
        case ReferData():
            from ppt.data.refer import ReferSource

            return ReferSource(config)
        case TableData():
            from ppt.data.table import TableSource

            return TableSource(config)
        case ImageFolderData():
            from ppt.data.object_centric import ImageFolderSource

            return ImageFolderSource(config)
        case MiniImageNetData():
            from ppt.data.mini_imagenet import MiniImageNetSource

            return MiniImageNetSource(config)
        case ToyboxScenes():
            from ppt.data.toybox import ToyboxSceneSource

            return ToyboxSceneSource(config)
        case ToyboxObjects():
            from ppt.data.toybox import ToyboxObjectSource

            return ToyboxObjectSource(config)
    raise ValueError(f"data.format {getattr(config, 'format', config)!r} has no source")


def split_expressions(
    expressions: Iterable[RawExpression],
) -> tuple[list[RawExpression], list[Rejected]]:
    """Expressions with stripped texts, and those that have no letter or digit to work with."""
    kept, rejected = [], []
    for expression in expressions:
        text = expression.text.strip()
        if any(c.isalnum() for c in text):
            kept.append(RawExpression(expression.expression_id, text, expression.kind))
        else:
            rejected.append(
                Rejected(expression.expression_id, f"expression {expression.text!r} has no word")
            )
    return kept, rejected


def group_reasons(reasons: Iterable[tuple[str, int]]) -> list[tuple[int, str]]:
    """(how many, the first of them) of reasons that differ in names and numbers alone, the
    commonest first; each is given with how many expressions it costs."""
    times, examples = Counter[str](), dict[str, str]()
    for reason, number in reasons:
        alike = re.sub(r"'[^']*'|\S*[\d./]\S*", "", reason)
        times[alike] += number
        examples.setdefault(alike, reason)
    return [(number, examples[alike]) for alike, number in times.most_common()]


def fingerprint_of(parts: Iterable[Any]) -> str:
    """SHA-256 over plain data (JSON), part by part."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()

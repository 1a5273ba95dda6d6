"""How sentences are scored: ours, and those by which peers printed their tables.

A protocol says which sentences are scored, at which size masks are compared, and from which mask
probability a pixel belongs to the prediction. What each reproduces of a peer, and what not, stands
in docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Protocol:
    """One way to score; the defaults are ours."""

    name: str
    first_sentence: bool = False  # of each ref; else every sentence
    size: tuple[int, int] | None = None  # (height, width) of both masks; None: the original's
    threshold: float = 0.5  # a pixel is foreground above this probability

    @property
    def mask_threshold(self) -> float:
        """The logit of `threshold`; 0 at 0.5."""
        return math.log(self.threshold / (1 - self.threshold))

    def scored(self, truths: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows of a ground-truth table that are scored, in its order.

        A ref is an object: sentences of a picture whose masks are the same.
        """
        seen = set()
        for row in truths:
            ref = row["picture"], row["mask"]
            if not (self.first_sentence and ref in seen):
                yield row
            seen.add(ref)

    def compared(self, mask: np.ndarray) -> np.ndarray:
        """A bool [height, width] mask at the size of the comparison, by nearest neighbour."""
        if self.size is None:
            return mask
        height, width = self.size
        resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        return np.asarray(resized)


OURS = Protocol("ours")
"""Every sentence, at the original size (Section 4.1 prints mIoU so; our choice in detail)."""

LAVT = Protocol("lavt", size=(480, 480))
CRIS = Protocol("cris", first_sentence=True, threshold=0.35)

PROTOCOLS = {protocol.name: protocol for protocol in (OURS, LAVT, CRIS)}

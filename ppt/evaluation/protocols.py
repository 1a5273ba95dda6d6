"""Evaluation protocols: our own, and those of published results by other methods.

A protocol determines which sentences are scored, at which size the masks are compared, and above
which mask probability a pixel belongs to the prediction. docs/evaluation.md says how far each
protocol reproduces the published one.
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
    """A way to score sentences; the default values are those of our own protocol."""

    name: str
    first_sentence: bool = False  # whether only the first sentence of each ref is scored
    size: tuple[int, int] | None = None  # (height, width) of both masks; None: the original size
    threshold: float = 0.5  # the probability above which a pixel is foreground

    @property
    def mask_threshold(self) -> float:
        """The logit of `threshold`."""
        return math.log(self.threshold / (1 - self.threshold))

    def scored(self, truths: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a ground-truth table that are scored, in the order of the table.

        The sentences of a picture that have the same mask form a ref.
        """
        seen = set()
        for row in truths:
            ref = row["picture"], row["mask"]
            if not (self.first_sentence and ref in seen):
                yield row
            seen.add(ref)

    def compared(self, mask: np.ndarray) -> np.ndarray:
        """Scale a mask, bool [height, width], to the protocol's size by nearest neighbour."""
        if self.size is None:
            return mask
        height, width = self.size
        resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        return np.asarray(resized)


OURS = Protocol("ours")
"""Every sentence is scored at the original size (our choice; Section 4.1 names the metrics)."""

LAVT = Protocol("lavt", size=(480, 480))
CRIS = Protocol("cris", first_sentence=True, threshold=0.35)

PROTOCOLS = {protocol.name: protocol for protocol in (OURS, LAVT, CRIS)}

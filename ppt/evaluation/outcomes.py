"""Classifications of results for reports: outcomes, changes and numbers of candidates."""

from __future__ import annotations

from typing import Literal

Outcome = Literal["found", "part", "too much", "wrong object", "nothing"]

OUTCOMES: tuple[Outcome, ...] = ("found", "part", "too much", "wrong object", "nothing")
"""The outcomes in the order in which reports show them, from right to wrong."""

MEANING: dict[Outcome, str] = {
    "found": "IoU with the target of at least 0.5",
    "part": "mostly on the target, most of which it leaves out",
    "too much": "covers most of the target, and as much besides",
    "wrong object": "less than half of it is on the target, and less than half of the target in it",
    "nothing": "an empty mask",
}


def outcome(intersection: int, predicted: int, target: int) -> Outcome:
    """Return the outcome of a prediction; `MEANING` says what each outcome stands for.

    Args:
        intersection: the number of pixels in both the prediction and the target.
        predicted: the number of pixels of the prediction.
        target: the number of pixels of the target.
    """
    if not predicted:
        return "nothing"
    if 2 * intersection >= predicted + target - intersection:
        return "found"
    if 2 * intersection < min(predicted, target):
        return "wrong object"
    return "part" if predicted < target else "too much"


FOUND = 0.5
"""A referent counts as found if the IoU is at least this value, as in P@0.5."""

CHANGE = 0.1
"""The least change of a sentence's IoU that counts as an improvement or a deterioration."""

CANDIDATE_GROUPS = ("none", "1", "2", "3 or more")
"""The groups of sentences by the number of candidates that CLIP and SAM find for them."""


def candidate_group(num_candidates: int) -> str:
    """Return the entry of `CANDIDATE_GROUPS` for a number of candidates."""
    return CANDIDATE_GROUPS[min(num_candidates, 3)]

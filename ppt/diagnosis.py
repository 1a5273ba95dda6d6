"""How a mask misses its target, what counts as a change, how hard a sentence is (our choices)."""

from __future__ import annotations

from typing import Literal

Outcome = Literal["found", "part", "too much", "wrong object", "nothing"]

OUTCOMES: tuple[Outcome, ...] = ("found", "part", "too much", "wrong object", "nothing")
"""In the order of a bar: right, half right, wrong."""

MEANING: dict[Outcome, str] = {
    "found": "IoU with the target of at least 0.5",
    "part": "mostly on the target, most of which it leaves out",
    "too much": "covers most of the target, and as much besides",
    "wrong object": "less than half of it is on the target, and less than half of the target in it",
    "nothing": "an empty mask",
}


def outcome(intersection: int, predicted: int, target: int) -> Outcome:
    """The outcome of a prediction of `predicted` pixels, of which `intersection` are the target's
    `target` pixels."""
    if not predicted:
        return "nothing"
    if 2 * intersection >= predicted + target - intersection:
        return "found"
    if 2 * intersection < min(predicted, target):
        return "wrong object"
    return "part" if predicted < target else "too much"


CHANGE = 0.1
"""A sentence improved or worsened when its IoU moved by at least this much."""

CANDIDATE_GROUPS = ("none", "1", "2", "3 or more")
"""Of sentences, by how many candidates CLIP and SAM find for them."""


def candidate_group(num_candidates: int) -> str:
    """One of `CANDIDATE_GROUPS`."""
    return CANDIDATE_GROUPS[min(num_candidates, 3)]

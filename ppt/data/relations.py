"""What may be said of an object so that nobody takes another one for it: positions, relations.

Centres are (x, y), normalised to [0, 1] of the picture. Rivals are the other objects of the
target's class. Margins are our choice: a word is used only where nobody would argue. Positions hold
for the whole picture and among the rivals at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppt.expressions import POSITION_TEMPLATES, RELATION_TEMPLATES

CLEARLY = 0.1
"""By how much a rival must be farther along the axis that a word speaks of."""

_MIDDLE = 0.15  # how far from the middle "in the middle" reaches
_AXIS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
_NEAR = 0.42  # "next to": centres at most so far apart
_CORNERS = ("top left", "top right", "bottom left", "bottom right")


class RelationExpression(NamedTuple):
    """A text for one object of a picture; `context` are the other objects' indices."""

    text: str
    target: int
    context: tuple[int, ...]
    kind: str  # position or relation


class _Option(NamedTuple):
    kind: str
    word: str
    target: int
    landmark: int  # -1 for a position
    needed: bool  # the word tells the target from rivals


def position_words(target: np.ndarray, rivals: Sequence[np.ndarray]) -> list[str]:
    """Keys of `POSITION_TEMPLATES` that are true of `target` [2] and of none of the rivals."""
    x, y = target
    sides = {
        "left": x < 0.5 and all(rx > x + CLEARLY for rx, _ in rivals),
        "right": x > 0.5 and all(rx < x - CLEARLY for rx, _ in rivals),
        "top": y < 0.5 and all(ry > y + CLEARLY for _, ry in rivals),
        "bottom": y > 0.5 and all(ry < y - CLEARLY for _, ry in rivals),
    }
    if not rivals:  # nothing to compare with: it must lie clearly there
        sides = {word: true and _off_centre(word, x, y) > CLEARLY for word, true in sides.items()}
    words = [word for word, true in sides.items() if true]
    words += [corner for corner in _CORNERS if _in_corner(corner, target, rivals)]
    farther = _MIDDLE + CLEARLY
    if _from_middle(x, y) < _MIDDLE and all(_from_middle(*r) > farther for r in rivals):
        words.append("middle")
    return words


def _off_centre(word: str, x: float, y: float) -> float:
    return abs((x if word in ("left", "right") else y) - 0.5)


def _from_middle(x: float, y: float) -> float:
    return max(abs(x - 0.5), abs(y - 0.5))


def _in_corner(corner: str, target: np.ndarray, rivals: Sequence[np.ndarray]) -> bool:
    """Clearly in its quadrant, every rival in another one and clearly apart along an axis."""
    sign = np.array([-1 if "left" in corner else 1, -1 if "top" in corner else 1])
    depth = sign * (target - 0.5)
    return bool((depth > CLEARLY).all()) and all(
        ((sign * (rival - 0.5) < 0) & (sign * (target - rival) > CLEARLY)).any() for rival in rivals
    )


def relation_words(
    target: np.ndarray, landmark: np.ndarray, rivals: Sequence[np.ndarray]
) -> list[str]:
    """Keys of `RELATION_TEMPLATES` true of `target` [2] to `landmark` [2] and of no rival."""
    offset = target - landmark
    others = [rival - landmark for rival in rivals]
    words = []
    for word, (axis, sign) in _AXIS.items():
        along, across = sign * offset[axis], abs(offset[1 - axis])
        if along > max(CLEARLY, across) and all(sign * other[axis] < 0 for other in others):
            words.append(word)
    distance = np.hypot(*offset)
    if distance < _NEAR and all(np.hypot(*o) > distance + 1.5 * CLEARLY for o in others):
        words.append("next to")
    return words


def describe(
    class_names: Sequence[str],
    centres: np.ndarray,
    first_kind: str,
    rng: np.random.Generator,
    *,
    max_expressions: int = 3,
) -> list[RelationExpression]:
    """Up to `max_expressions` unambiguous texts, each of another object if there are enough.

    `centres` [N, 2]. The first text is of `first_kind`, "position" or "relation"; without one
    there is none at all. Where a relation holds in both directions, both are told. Texts that
    are needed to tell the target from objects of its class come more often (our choice).
    """
    options = _options(class_names, centres)
    chosen: list[_Option] = []
    while len(chosen) < max_expressions:
        pool = [o for o in options if chosen or o.kind == first_kind]
        if chosen and chosen[-1].kind == "relation":
            back = (chosen[-1].landmark, chosen[-1].target)
            pool = [o for o in pool if (o.target, o.landmark) == back] or pool
        told = {o.target for o in chosen}
        pool = [o for o in pool if o.target not in told]
        if not pool:
            break
        weights = np.array([3.0 if o.needed else 1.0 for o in pool])
        chosen.append(pool[rng.choice(len(pool), p=weights / weights.sum())])
    return [_tell(option, class_names, rng) for option in chosen]


def _options(class_names: Sequence[str], centres: np.ndarray) -> list[_Option]:
    options = []
    everyone = range(len(class_names))
    for target in everyone:
        name = class_names[target]
        rivals = [centres[i] for i in everyone if i != target and class_names[i] == name]
        for word in position_words(centres[target], rivals):
            options.append(_Option("position", word, target, -1, bool(rivals)))
        for landmark in everyone:
            if list(class_names).count(class_names[landmark]) > 1 or landmark == target:
                continue
            for word in relation_words(centres[target], centres[landmark], rivals):
                options.append(_Option("relation", word, target, landmark, bool(rivals)))
    return options


def _tell(
    option: _Option, class_names: Sequence[str], rng: np.random.Generator
) -> RelationExpression:
    templates = POSITION_TEMPLATES if option.kind == "position" else RELATION_TEMPLATES
    names = [class_names[i] for i in (option.target, option.landmark) if i >= 0]
    text = str(rng.choice(templates[option.word])).format(*names)
    context = tuple(i for i in range(len(class_names)) if i != option.target)
    return RelationExpression(text, option.target, context, option.kind)

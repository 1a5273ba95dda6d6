"""Unambiguous texts about objects: absolute positions, and relations to other objects.

Centres are (x, y), normalised to [0, 1] of the picture. Rivals are the other objects of the
target's class. A word is used only where it is clearly true of the
target and clearly false of its rivals. A position must be true of the target both within the
picture and in comparison with its rivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppt.labels.noun_phrases import POSITION_TEMPLATES, RELATION_TEMPLATES

MAX_EXPRESSIONS = 3
"""The greatest number of texts of a picture."""

CLEARLY = 0.1
"""The least distance between the target and a rival along the axis of a word (our choice)."""

_MIDDLE = 0.15  # the greatest distance from the picture's centre of an object "in the middle"
_AXIS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis and sign
_NEAR = 0.42  # the greatest distance between the centres of objects "next to" each other
_CORNERS = ("top left", "top right", "bottom left", "bottom right")


class RelationExpression(NamedTuple):
    """A text about one object of a picture; `context` holds the indices of the other objects."""

    text: str
    target: int
    context: tuple[int, ...]
    kind: str  # position or relation


class _Option(NamedTuple):
    """A word that is true of one object only."""

    kind: str
    word: str
    target: int
    landmark: int  # -1 for a position
    needed: bool  # whether there are rivals, so that the word is needed


def position_words(target: np.ndarray, rivals: Sequence[np.ndarray]) -> list[str]:
    """Return the keys of `POSITION_TEMPLATES` that are true of the target and of no rival.

    Args:
        target: the centre of the target, [2].
        rivals: the centres of its rivals.
    """
    x, y = target
    sides = {
        "left": x < 0.5 and all(rx > x + CLEARLY for rx, _ in rivals),
        "right": x > 0.5 and all(rx < x - CLEARLY for rx, _ in rivals),
        "top": y < 0.5 and all(ry > y + CLEARLY for _, ry in rivals),
        "bottom": y > 0.5 and all(ry < y - CLEARLY for _, ry in rivals),
    }
    if not rivals:  # the word must then be clearly true in comparison with the picture's centre
        sides = {word: true and _off_centre(word, x, y) > CLEARLY for word, true in sides.items()}
    words = [word for word, true in sides.items() if true]
    words += [corner for corner in _CORNERS if _in_corner(corner, target, rivals)]
    farther = _MIDDLE + CLEARLY
    if _from_middle(x, y) < _MIDDLE and all(_from_middle(*r) > farther for r in rivals):
        words.append("middle")
    return words


def _off_centre(word: str, x: float, y: float) -> float:
    """Return the distance from the picture's centre along the axis of the word."""
    return abs((x if word in ("left", "right") else y) - 0.5)


def _from_middle(x: float, y: float) -> float:
    """Return the greater of the distances from the picture's centre along the two axes."""
    return max(abs(x - 0.5), abs(y - 0.5))


def _in_corner(corner: str, target: np.ndarray, rivals: Sequence[np.ndarray]) -> bool:
    """Return whether a corner word is true of the target and of no rival.

    The target must lie clearly inside the quadrant. Every rival must lie in another quadrant, and
    clearly farther from the corner than the target along an axis that separates the two quadrants.
    """
    sign = np.array([-1 if "left" in corner else 1, -1 if "top" in corner else 1])
    depth = sign * (target - 0.5)
    return bool((depth > CLEARLY).all()) and all(
        ((sign * (rival - 0.5) < 0) & (sign * (target - rival) > CLEARLY)).any() for rival in rivals
    )


def relation_words(
    target: np.ndarray, landmark: np.ndarray, rivals: Sequence[np.ndarray]
) -> list[str]:
    """Return the keys of `RELATION_TEMPLATES` that are true of the target and of no rival.

    Args:
        target: the centre of the target, [2].
        landmark: the centre of the object to which the target is related, [2].
        rivals: the centres of the target's rivals.
    """
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
) -> list[RelationExpression]:
    """Draw up to `MAX_EXPRESSIONS` unambiguous texts, each about a different object.

    After a relation, its inverse is preferred. Texts about an object that has rivals are three
    times as probable as others.

    Args:
        class_names: the classes of the N objects.
        centres: the centres of the objects, [N, 2].
        first_kind: the kind of the first text, "position" or "relation". Without a text of this
            kind the result is empty.
        rng: the source of random numbers.
    """
    options = _options(class_names, centres)
    chosen: list[_Option] = []
    while len(chosen) < MAX_EXPRESSIONS:
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
    """Return every word that is true of one object and of no rival of it.

    Only objects whose class occurs once are landmarks.
    """
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
    """Put an option into words, with a random template."""
    templates = POSITION_TEMPLATES if option.kind == "position" else RELATION_TEMPLATES
    names = [class_names[i] for i in (option.target, option.landmark) if i >= 0]
    text = str(rng.choice(templates[option.word])).format(*names)
    context = tuple(i for i in range(len(class_names)) if i != option.target)
    return RelationExpression(text, option.target, context, option.kind)

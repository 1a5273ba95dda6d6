"""Texts about a toy scene: referring expressions and captions.

A referring expression is true of exactly one object, as in RefCOCO. A caption mentions some of the
objects, as texts on the web do. There are four kinds of expressions:
`class` ("the car"), `colour` ("red car"), `position` ("the car on the left") and `relation` ("the
person in green left of the red car").
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ppt.toybox.shapes import CLASS_NAMES, COLOUR_NAMES

KINDS = ("class", "colour", "position", "relation")
KIND_SHARES = (0.15, 0.25, 0.30, 0.30)

# Margins as fractions of the picture's side (our choice): a word is used only where it is clearly
# true of the target and clearly false of its rivals.
_CLEARLY = 0.08
_NEARER_BY = 0.12

_POSITION_WORDINGS = {
    "left": ("left {}", "the {} on the left", "{} on left"),
    "right": ("right {}", "the {} on the right", "{} on right"),
    "top": ("top {}", "the {} at the top"),
    "bottom": ("bottom {}", "the {} at the bottom"),
    "middle": ("the {} in the middle", "middle {}"),
}
_RELATION_WORDINGS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
    "near": ("next to", "near"),
}

VOCABULARY = (
    *CLASS_NAMES,
    *COLOUR_NAMES,
    "a",
    "an",
    "the",
    "of",
    "photo",
    "picture",
    "and",
    "in",
    "on",
    "at",
    "to",
    "left",
    "right",
    "top",
    "bottom",
    "middle",
    "above",
    "below",
    "under",
    "next",
    "near",
)


class Thing(Protocol):
    """The properties of an object that texts use; the box is (x0, y0, x1, y1) in pixels."""

    class_name: str
    colour: str
    box: tuple[int, int, int, int]


class Expression(NamedTuple):
    """A text that refers to exactly one object; `target` is its index among the objects."""

    text: str
    kind: str
    target: int


class Noun(NamedTuple):
    """A class, a colour or both, which a text says is in the picture; None stands for any."""

    class_name: str | None
    colour: str | None

    def matches(self, thing: Thing) -> bool:
        """Return whether the noun is true of the object."""
        return self.class_name in (None, thing.class_name) and self.colour in (
            None,
            thing.colour,
        )

    @property
    def text(self) -> str:
        """The noun in words, for example "red car" or "person in green"."""
        if self.class_name == "person" and self.colour:
            return f"person in {self.colour}"
        return " ".join(word for word in (self.colour, self.class_name) if word)


class Caption(NamedTuple):
    """A text and the nouns it mentions; `placed` means that it also says where an object is."""

    text: str
    nouns: tuple[Noun, ...]
    placed: bool


def centre(thing: Thing) -> np.ndarray:
    """Return the centre (x, y) of the object's box in pixels."""
    x0, y0, x1, y1 = thing.box
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2])


def position_of(target: np.ndarray, rivals: Sequence[np.ndarray], size: int) -> list[str]:
    """Return the position words that are true of a target and of none of its rivals.

    Args:
        target: the centre (x, y) of the target in pixels.
        rivals: the centres of the other objects that the noun could mean.
        size: the side of the picture in pixels.
    """
    x, y = target / size
    others = [rival / size for rival in rivals]
    words = []
    if x < 0.5 and all(x + _CLEARLY < ox for ox, _ in others):
        words.append("left")
    if x > 0.5 and all(x - _CLEARLY > ox for ox, _ in others):
        words.append("right")
    if y < 0.45 and all(y + _CLEARLY < oy for _, oy in others):
        words.append("top")
    if y > 0.55 and all(y - _CLEARLY > oy for _, oy in others):
        words.append("bottom")
    if _from_middle(x, y) < 0.13 and all(_from_middle(ox, oy) > 0.22 for ox, oy in others):
        words.append("middle")
    return words


def relation_of(
    target: np.ndarray, anchor: np.ndarray, rivals: Sequence[np.ndarray], size: int
) -> list[str]:
    """Return the relations to an anchor that are true of a target and of none of its rivals.

    Args:
        target: the centre (x, y) of the target in pixels.
        anchor: the centre of the object that the relation starts from.
        rivals: the centres of the other objects that the noun could mean.
        size: the side of the picture in pixels.
    """
    offset = (target - anchor) / size
    others = [(rival - anchor) / size for rival in rivals]
    words = []
    for word, axis, sign in (
        ("left", 0, -1),
        ("right", 0, 1),
        ("above", 1, -1),
        ("below", 1, 1),
    ):
        along, across = sign * offset[axis], abs(offset[1 - axis])
        if along > max(_NEARER_BY, across) and all(sign * other[axis] < 0 for other in others):
            words.append(word)
    distance = np.hypot(*offset)
    if distance < 0.42 and all(np.hypot(*other) > distance + _NEARER_BY for other in others):
        words.append("near")
    return words


def referring_expressions(
    things: Sequence[Thing], size: int, count: int, rng: np.random.Generator
) -> list[Expression]:
    """Draw up to `count` unambiguous expressions with different texts.

    The kinds are drawn with the probabilities KIND_SHARES. Objects without an expression are
    preferred as targets. `size` is the side of the picture in pixels.
    """
    makers: dict[str, Callable[[int], Expression | None]] = {
        "class": lambda i: _by_class(things, i, rng),
        "colour": lambda i: _by_colour(things, i, rng),
        "position": lambda i: _by_position(things, i, size, rng),
        "relation": lambda i: _by_relation(things, i, size, rng),
    }
    chosen: list[Expression] = []
    for _ in range(4 * count):
        kind = str(rng.choice(KINDS, p=KIND_SHARES))
        taken = {expression.target for expression in chosen}
        order = sorted(rng.permutation(len(things)), key=lambda i: i in taken)
        made = (makers[kind](int(i)) for i in order)
        expression = next((e for e in made if e and e.text not in {c.text for c in chosen}), None)
        if expression:
            chosen.append(expression)
        if len(chosen) == count:
            break
    return chosen


def caption(
    things: Sequence[Thing], size: int, with_colour: bool, rng: np.random.Generator
) -> Caption:
    """Draw a caption that mentions one to three of the objects, or says where one of them is."""
    some = rng.permutation(len(things))[: rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])]
    if rng.random() < 0.3:
        placed = _placed_caption(things, int(some[0]), size, with_colour, rng)
        if placed:
            return placed
    nouns = tuple(_noun(things[i], with_colour) for i in some)
    opening = rng.choice(["a ", "the ", "a photo of a ", "a picture of a ", ""])
    return Caption(str(opening) + " and a ".join(noun.text for noun in nouns), nouns, False)


def _placed_caption(
    things: Sequence[Thing],
    target: int,
    size: int,
    with_colour: bool,
    rng: np.random.Generator,
) -> Caption | None:
    """Draw a caption that says where the target is; None if no word is true of it."""
    noun = _noun(things[target], with_colour)
    others = [i for i in range(len(things)) if not noun.matches(things[i])]
    here = centre(things[target])
    if others and rng.random() < 0.6:
        anchor = things[rng.choice(others)]
        words = relation_of(here, centre(anchor), [], size)
        if words:
            other = _noun(anchor, with_colour)
            wording = rng.choice(_RELATION_WORDINGS[str(rng.choice(words))])
            return Caption(f"the {noun.text} {wording} the {other.text}", (noun, other), True)
    words = position_of(here, _rivals(things, target, noun), size)
    if not words:
        return None
    wording = rng.choice(_POSITION_WORDINGS[str(rng.choice(words))])
    return Caption(str(wording).format(noun.text), (noun,), True)


def _from_middle(x: float, y: float) -> float:
    return max(abs(x - 0.5), abs(y - 0.5))


def _noun(thing: Thing, with_colour: bool) -> Noun:
    return Noun(thing.class_name, thing.colour if with_colour else None)


def _rivals(things: Sequence[Thing], target: int, noun: Noun) -> list[np.ndarray]:
    """Return the centres of the other objects that the noun could mean."""
    return [centre(t) for i, t in enumerate(things) if i != target and noun.matches(t)]


def _the(rng: np.random.Generator) -> str:
    return str(rng.choice(["the ", ""]))


def _by_class(things: Sequence[Thing], target: int, rng: np.random.Generator) -> Expression | None:
    noun = _noun(things[target], with_colour=False)
    if _rivals(things, target, noun):
        return None
    return Expression(_the(rng) + noun.text, "class", target)


def _by_colour(things: Sequence[Thing], target: int, rng: np.random.Generator) -> Expression | None:
    noun = _noun(things[target], with_colour=True)
    if _rivals(things, target, noun):
        return None
    return Expression(_the(rng) + noun.text, "colour", target)


def _by_position(
    things: Sequence[Thing], target: int, size: int, rng: np.random.Generator
) -> Expression | None:
    noun = _noun(things[target], with_colour=bool(rng.random() < 0.3))
    rivals = _rivals(things, target, noun)
    # Without rivals the position is not needed; most of these expressions are left out.
    if not rivals and rng.random() < 0.6:
        return None
    words = position_of(centre(things[target]), rivals, size)
    if not words:
        return None
    wording = rng.choice(_POSITION_WORDINGS[str(rng.choice(words))])
    return Expression(str(wording).format(noun.text), "position", target)


def _by_relation(
    things: Sequence[Thing], target: int, size: int, rng: np.random.Generator
) -> Expression | None:
    noun = _noun(things[target], with_colour=bool(rng.random() < 0.4))
    rivals = _rivals(things, target, noun)
    if not rivals and rng.random() < 0.3:
        return None
    for index in rng.permutation(len(things)):
        anchor = _noun(things[index], with_colour=bool(rng.random() < 0.4))
        # The anchor must be unambiguous and of another class than the target.
        if things[index].class_name == noun.class_name or _rivals(things, int(index), anchor):
            continue
        words = relation_of(centre(things[target]), centre(things[index]), rivals, size)
        if words:
            wording = rng.choice(_RELATION_WORDINGS[str(rng.choice(words))])
            text = f"{_the(rng)}{noun.text} {wording} the {anchor.text}"
            return Expression(text, "relation", target)
    return None

"""Synthesis of D_ref: pictures of several objects, with spatial texts, from D_sem (Section 3.2).

In composition, pictures are scaled into the cells of a mosaic, and the text gives the absolute
position of the target. In fusion, pictures are embedded in another one, and the text gives the
relation of the target to another object. The paper does not describe the layouts further.

All masks are D_sem's pseudo masks. A synthesised picture is a square of S x S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from ppt.config import Synthesis
from ppt.images.masks import mask_to_box
from ppt.synthesis.relations import RelationExpression, describe

Kind = Literal["composition", "fusion"]
Layout = Callable[
    [Sequence["ObjectPicture"], int, np.random.Generator], tuple[np.ndarray, np.ndarray]
]

# All of these values are our choice.
_USABLE = (0.02, 0.9)  # the least and the greatest share of its picture that a mask may cover
_MIN_AREA = 0.002  # the least share of the synthesised picture that every object covers
_TRIES = 48  # layouts that are tried for a picture
_FULL_TRIES = 16  # layouts that are tried before one more picture is left out
_CHOOSY_TRIES = 8  # layouts that are tried for a text that tells objects of one class apart
_REPEATS = {"composition": 0.5, "fusion": 0.8}  # probability that an object repeats a class
_OBJECT_SIZE = (0.2, 0.38)  # in fusion: square root of the area of an object's box, as share of S
_THIN_STRIP = 2  # a strip of background of fewer pixels is not used to extend a picture
_FEATHER = 0.02  # width of the blended border of an embedded picture, as share of S

# Probabilities of the number of pictures.
_MOSAIC_COUNTS = {3: 0.1, 4: 0.6, 5: 0.1, 6: 0.1, 9: 0.1}
_FUSION_COUNTS = {2: 0.15, 3: 0.5, 4: 0.35}


@dataclass(frozen=True)
class ObjectPicture:
    """A D_sem picture, uint8 [H, W, 3], with its object's pseudo mask, bool [H, W], and class."""

    image: np.ndarray
    mask: np.ndarray
    class_name: str


@dataclass(frozen=True)
class SynthesisedPicture:
    """A D_ref picture, uint8 [S, S, 3], with its objects' masks, bool [N, S, S], and classes.

    `expressions` is empty if no layout of the pictures allowed an unambiguous text.
    """

    image: np.ndarray
    masks: np.ndarray
    class_names: list[str]
    expressions: list[RelationExpression]


class Recipe(NamedTuple):
    """The plan of a D_ref picture; `pictures` are indices of the list given to `draw_recipes`."""

    kind: Kind
    pictures: tuple[int, ...]
    seed: int


def is_usable(mask: np.ndarray) -> bool:
    """Return whether D_ref can use a picture with this pseudo mask, bool [H, W].

    The mask must cover at least 2 percent and at most 90 percent of the picture.
    """
    return _USABLE[0] <= mask.mean() <= _USABLE[1]


# ---------------------------------------------------------------- which pictures


def draw_recipes(class_names: Sequence[str], config: Synthesis, seed: int) -> list[Recipe]:
    """Draw `config.num_pictures` recipes from pictures of the given classes.

    The result depends on the arguments only.

    Raises:
        ValueError: if there are fewer than two different classes.
    """
    by_class: dict[str, list[int]] = {}
    for index, name in enumerate(class_names):
        by_class.setdefault(name, []).append(index)
    if len(by_class) < 2:
        raise ValueError(f"D_ref needs pictures of two classes, got {sorted(by_class)}")
    recipes = []
    for number in range(config.num_pictures):
        rng = np.random.default_rng([seed, number])
        kind: Kind = "composition" if rng.random() < config.composition else "fusion"
        counts = _MOSAIC_COUNTS if kind == "composition" else _FUSION_COUNTS
        count = int(rng.choice(list(counts), p=list(counts.values())))
        names = _draw_classes(list(by_class), list(class_names), count, kind, rng)
        pictures = [int(rng.choice(by_class[name])) for name in names]
        recipes.append(Recipe(kind, tuple(pictures), int(rng.integers(2**31))))
    return recipes


def _draw_classes(
    names: list[str], of_pictures: list[str], count: int, kind: Kind, rng: np.random.Generator
) -> list[str]:
    """Draw `count` classes, of which some may be equal.

    In fusion the first class drawn is not repeated, so that it can serve as the landmark of a
    relation.
    """
    landmark = str(rng.choice(of_pictures))
    others = [name for name in names if name != landmark]
    drawn = [landmark]
    while len(drawn) < count:
        known = drawn[1:] if kind == "fusion" else drawn
        if known and rng.random() < _REPEATS[kind]:
            drawn.append(str(rng.choice(known)))
        else:
            drawn.append(str(rng.choice(others)))
    return [drawn[i] for i in rng.permutation(count)]


# ---------------------------------------------------------------- the picture


def synthesise(recipe: Recipe, pictures: Sequence[ObjectPicture], size: int) -> SynthesisedPicture:
    """Make the picture of a recipe, with its masks and expressions.

    Args:
        recipe: the recipe.
        pictures: the D_sem pictures that `recipe.pictures` names, in the same order.
        size: S, the side of the synthesised picture in pixels.

    Returns:
        The picture, uint8 [S, S, 3], with the masks of its N objects, bool [N, S, S].
    """
    make = compose if recipe.kind == "composition" else fuse
    return make(pictures, size, np.random.default_rng(recipe.seed))


def compose(
    pictures: Sequence[ObjectPicture], size: int, rng: np.random.Generator
) -> SynthesisedPicture:
    """Make a mosaic of the pictures, with a first text on an absolute position."""
    return _first_with_text(_mosaic, pictures, size, "position", rng)


def fuse(
    pictures: Sequence[ObjectPicture], size: int, rng: np.random.Generator
) -> SynthesisedPicture:
    """Embed the pictures in one of them, with a first text on a relation."""
    return _first_with_text(_embed, pictures, size, "relation", rng)


def _first_with_text(
    layout: Layout,
    pictures: Sequence[ObjectPicture],
    size: int,
    kind: str,
    rng: np.random.Generator,
) -> SynthesisedPicture:
    """Draw layouts of the pictures until one has an unambiguous text and shows every object.

    If classes are repeated, the search ends within the first _CHOOSY_TRIES layouts only if the
    first text is about an object of a repeated class. After every _FULL_TRIES layouts one more
    picture is left out. The result has no expressions if none of the layouts allowed a text.
    """
    twins = len({picture.class_name for picture in pictures}) < len(pictures)
    made: SynthesisedPicture | None = None
    for attempt in range(_TRIES):
        count = max(2, len(pictures) - attempt // _FULL_TRIES)
        order = rng.permutation(len(pictures))[:count]
        ordered = [_flipped(pictures[i], rng) for i in order]
        image, masks = layout(ordered, size, rng)
        names = [picture.class_name for picture in ordered]
        shown = masks.mean((1, 2)) >= _MIN_AREA
        expressions = describe(names, _centres(masks), kind, rng) if shown.all() else []
        if made is None or expressions:
            made = SynthesisedPicture(image, masks, names, expressions)
        if expressions:
            needed = names.count(names[expressions[0].target]) > 1
            if needed or not twins or attempt >= _CHOOSY_TRIES:
                break
    assert made is not None
    return made


def _flipped(picture: ObjectPicture, rng: np.random.Generator) -> ObjectPicture:
    """Return the picture, mirrored left to right with a probability of one half."""
    if rng.random() < 0.5:
        return picture
    return ObjectPicture(picture.image[:, ::-1], picture.mask[:, ::-1], picture.class_name)


def _centres(masks: np.ndarray) -> np.ndarray:
    """Return the centres (x, y) of the masks' boxes, [N, 2], normalised to [0, 1]."""
    boxes = np.array([mask_to_box(mask) for mask in masks], dtype=np.float64)
    return (boxes[:, :2] + boxes[:, 2:]) / 2 / masks.shape[:0:-1]


def _resize(
    image: np.ndarray, mask: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scale a picture and its mask to [height, width]."""
    pixels = Image.fromarray(np.ascontiguousarray(image))
    covered = Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255)
    return (
        np.asarray(pixels.resize((width, height), Image.Resampling.BICUBIC)),
        np.asarray(covered.resize((width, height), Image.Resampling.BOX)) >= 128,
    )


# ---------------------------------------------------------------- composition


def _mosaic(
    pictures: Sequence[ObjectPicture], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a mosaic; return the picture, uint8 [S, S, 3], and the masks, bool [N, S, S]."""
    image = np.zeros((size, size, 3), np.uint8)
    masks = np.zeros((len(pictures), size, size), bool)
    for i, (x0, y0, x1, y1) in enumerate(_cells(len(pictures), size, rng)):
        fitted = _fit(pictures[i], y1 - y0, x1 - x0, rng)
        image[y0:y1, x0:x1], masks[i, y0:y1, x0:x1] = fitted
    return image, masks


def _cells(count: int, size: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """Divide the square into `count` cells (x0, y0, x1, y1) in rows.

    The rows have the same number of cells, or numbers that differ by one. The cells have random
    widths and heights.
    """
    num_rows = max(1, round(count**0.5))
    per_row = [count // num_rows + (r < count % num_rows) for r in range(num_rows)]
    ys = _cuts(num_rows, size, rng)
    cells = []
    for row, columns in enumerate(rng.permutation(per_row).tolist()):
        xs = _cuts(columns, size, rng)
        cells += [(xs[c], ys[row], xs[c + 1], ys[row + 1]) for c in range(columns)]
    return cells


def _cuts(count: int, size: int, rng: np.random.Generator) -> list[int]:
    """Draw the `count` + 1 borders of `count` parts of [0, size]."""
    inner = (np.arange(1, count) + rng.uniform(-0.25, 0.25, count - 1)) * size / count
    return [0, *np.rint(inner).astype(int).tolist(), size]


def _fit(
    picture: ObjectPicture, height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Crop a picture to the aspect ratio of a cell and scale it to the cell's height and width.

    If the crop would cut off a part of the object, the whole picture is scaled, which changes its
    aspect ratio.
    """
    tall, wide = picture.mask.shape
    scale = min(tall / height, wide / width)
    crop = max(1, round(height * scale)), max(1, round(width * scale))
    x0, y0, x1, y1 = mask_to_box(picture.mask)
    top = _offset(y0, y1, crop[0], tall, rng)
    left = _offset(x0, x1, crop[1], wide, rng)
    window = slice(top, top + crop[0]), slice(left, left + crop[1])
    if picture.mask[window].sum() < 0.95 * picture.mask.sum():
        window = slice(None), slice(None)
    return _resize(picture.image[window], picture.mask[window], height, width)


def _offset(low: int, high: int, length: int, total: int, rng: np.random.Generator) -> int:
    """Draw the beginning of a window of `length` in [0, total).

    The window contains [low, high), or lies within it where it is shorter.
    """
    first, last = sorted((high - length, low))
    first, last = max(0, min(first, total - length)), max(0, min(last, total - length))
    return int(rng.integers(first, last + 1))


# ---------------------------------------------------------------- fusion


def _embed(
    pictures: Sequence[ObjectPicture], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Embed all pictures but the first in the first one.

    Returns:
        The picture, uint8 [S, S, 3], and the masks, bool [N, S, S]. The mask of a picture for which
        no place was found is empty.
    """
    image, mask = _outer(pictures[0], size, rng)
    masks = [mask]
    for picture in pictures[1:]:
        pixels, inner = _cut_out(picture, size, rng)
        place = _free_place(masks, pixels.shape[:2], size, rng)
        if place is None:
            masks.append(np.zeros((size, size), bool))  # a layout with an empty mask is rejected
            continue
        top, left = place
        window = slice(top, top + pixels.shape[0]), slice(left, left + pixels.shape[1])
        weight = _soft_rim(pixels.shape[:2], max(1, round(_FEATHER * size)))
        image[window] = (weight * pixels + (1 - weight) * image[window]).round().astype(np.uint8)
        for earlier in masks:
            earlier[window] = False
        masks.append(np.zeros((size, size), bool))
        masks[-1][window] = inner
    return image, np.stack(masks)


def _scale(picture: ObjectPicture, size: int, rng: np.random.Generator) -> float:
    """Draw the factor that scales an object to a size drawn from _OBJECT_SIZE."""
    x0, y0, x1, y1 = mask_to_box(picture.mask)
    side = rng.uniform(*_OBJECT_SIZE) * size
    return min(side / ((x1 - x0) * (y1 - y0)) ** 0.5, 0.6 * size / max(x1 - x0, y1 - y0))


def _outer(
    picture: ObjectPicture, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Scale the outer picture, and extend its background to S x S pixels by mirroring it.

    The object lies at a random place. If the mask becomes empty by scaling, the result is a black
    picture with an empty mask.
    """
    scale = _scale(picture, size, rng)
    height, width = (max(2, round(side * scale)) for side in picture.mask.shape)
    image, mask = _resize(picture.image, picture.mask, height, width)
    if not mask.any():
        return np.zeros((size, size, 3), np.uint8), np.zeros((size, size), bool)
    x0, y0, x1, y1 = mask_to_box(mask)
    rows, inside_rows = _extended(y0, y1, height, size, rng)
    columns, inside_columns = _extended(x0, x1, width, size, rng)
    whole = mask[rows][:, columns] & inside_rows[:, None] & inside_columns
    return image[rows][:, columns], whole


def _extended(
    low: int, high: int, length: int, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Extend one axis of a picture to `size` pixels.

    The object is moved to a random place. Beyond each border of the picture, the strip of
    background between that border and the object is mirrored repeatedly, so the object occurs only
    once. If one strip is thinner than _THIN_STRIP, the other one is used on both sides.

    Args:
        low: the first pixel of the object.
        high: the pixel after the object's last one.
        length: the picture's length along the axis in pixels.
        size: the length of the result.
        rng: the source of random numbers.

    Returns:
        For each of `size` pixels, the index of its source pixel, and whether it lies inside the
        picture.
    """
    start = int(rng.integers(0, max(1, size - (high - low)))) - low
    source = np.arange(size) - start
    inside = (source >= 0) & (source < length)
    before = _to_and_fro(np.maximum(-1 - source, 0), low)
    after = length - 1 - _to_and_fro(np.maximum(source - length, 0), length - high)
    if min(low, length - high) < _THIN_STRIP:
        before = after = before if low > length - high else after
    return np.where(inside, source, np.where(source < 0, before, after)), inside


def _to_and_fro(distance: np.ndarray, strip: int) -> np.ndarray:
    """Map 0, 1, 2, ... to 0, ..., strip - 1, strip - 1, ..., 0, 0, ..., strip - 1, and so on."""
    strip = max(1, strip)
    phase = distance % (2 * strip)
    return np.minimum(phase, 2 * strip - 1 - phase)


def _cut_out(
    picture: ObjectPicture, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut out the object with some of its surroundings, and scale both as `_scale` draws."""
    x0, y0, x1, y1 = mask_to_box(picture.mask)
    scale = _scale(picture, size, rng)
    before = rng.uniform(0.05, 0.35, 2) * (x1 - x0, y1 - y0)
    after = rng.uniform(0.05, 0.35, 2) * (x1 - x0, y1 - y0)
    left, top = np.maximum(0, np.rint((x0, y0) - before)).astype(int)
    right, bottom = np.rint((x1, y1) + after).astype(int)
    window = slice(top, bottom), slice(left, right)
    image, mask = picture.image[window], picture.mask[window]
    height, width = (max(2, min(size, round(side * scale))) for side in mask.shape)
    return _resize(image, mask, height, width)


def _free_place(
    masks: Sequence[np.ndarray], shape: tuple[int, int], size: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Draw the (top, left) of a rectangle of `shape` that covers almost nothing of any object.

    Returns None if no such place was found.
    """
    areas = [mask.sum() for mask in masks]
    for _ in range(40):
        top, left = (int(rng.integers(0, size - side + 1)) for side in shape)
        window = slice(top, top + shape[0]), slice(left, left + shape[1])
        if all(m[window].sum() <= 0.03 * a for m, a in zip(masks, areas, strict=True)):
            return top, left
    return None


def _soft_rim(shape: tuple[int, int], width: int) -> np.ndarray:
    """Return weights [h, w, 1] that are 1 inside and fall linearly over `width` pixels."""
    rise = [np.minimum(np.arange(n) + 1, n - np.arange(n)) / (width + 1) for n in shape]
    return np.minimum.outer(*rise).clip(0, 1)[..., None]

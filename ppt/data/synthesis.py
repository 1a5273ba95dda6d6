"""D_ref: pictures with several objects and spatial texts, made of D_sem's pictures (Section 3.2).

Composition: pictures are scaled into the cells of a mosaic, and a text tells the target's absolute
position. Fusion: pictures are embedded in another one, and a text tells the target's relation to
an object. Our choices, since the paper gives no more: most mosaics have 4 cells, cut unevenly, and
repeat classes; fusion shrinks the outer picture's object to the size of those embedded and extends
its background; most fusions have a third object, often of the target's class, so that the relation
is needed; a second and a third text of a picture may be of either kind.

The masks are D_sem's PSEUDO masks. Frame: bool or uint8 [height, width], size S of the square made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from ppt.config import Synthesis
from ppt.data.relations import RelationExpression, describe
from ppt.masks import mask_to_box

Kind = Literal["composition", "fusion"]
Layout = Callable[
    [Sequence["ObjectPicture"], int, np.random.Generator], tuple[np.ndarray, np.ndarray]
]

_USABLE = (0.02, 0.9)  # share of its picture that a mask must cover
_MIN_AREA = 0.002  # share of the made picture that every object must show
_TRIES = 48  # layouts until one has a text and shows every object
_FULL_TRIES = 16  # of these, layouts until one more picture is left out
_CHOOSY_TRIES = 8  # of these, layouts until the first text is needed to tell twins apart
_REPEATS = {"composition": 0.5, "fusion": 0.8}  # a further object repeats a class that is there
_OBJECT_SIZE = (0.2, 0.38)  # side of an object in fusion, share of S: sqrt of its box's area
_THIN_STRIP = 2  # pixels of background beside an object that are too few to extend it
_FEATHER = 0.02  # width of the soft rim of an embedded picture, share of S

_MOSAIC_COUNTS = {3: 0.1, 4: 0.6, 5: 0.1, 6: 0.1, 9: 0.1}
_FUSION_COUNTS = {2: 0.15, 3: 0.5, 4: 0.35}


@dataclass(frozen=True)
class ObjectPicture:
    """A D_sem picture: uint8 [H, W, 3], its object's pseudo mask bool [H, W], its class."""

    image: np.ndarray
    mask: np.ndarray
    class_name: str


@dataclass(frozen=True)
class SynthesisedPicture:
    """uint8 [S, S, 3], the objects' masks bool [N, S, S], their classes, texts about them.

    `expressions` is empty only if no layout of these pictures gave an unambiguous text.
    """

    image: np.ndarray
    masks: np.ndarray
    class_names: list[str]
    expressions: list[RelationExpression]


class Recipe(NamedTuple):
    """What one picture of D_ref is made of: `pictures` index the list of class names."""

    kind: Kind
    pictures: tuple[int, ...]
    seed: int


def is_usable(mask: np.ndarray) -> bool:
    """Whether a pseudo mask is neither a speck nor the whole picture."""
    return _USABLE[0] <= mask.mean() <= _USABLE[1]


# ---------------------------------------------------------------- which pictures


def draw_recipes(class_names: Sequence[str], config: Synthesis, seed: int) -> list[Recipe]:
    """`config.num_pictures` recipes over pictures of these classes: a pure function.

    Raises `ValueError` where there are fewer than two classes: nothing could be related.
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
    """Classes of a picture's objects, repeated; fusion keeps one that comes once: a landmark."""
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
    """The picture of a recipe, `size` pixels a side; `pictures` in the order of the recipe's."""
    make = compose if recipe.kind == "composition" else fuse
    return make(pictures, size, np.random.default_rng(recipe.seed))


def compose(
    pictures: Sequence[ObjectPicture], size: int, rng: np.random.Generator
) -> SynthesisedPicture:
    """A mosaic of the pictures with texts on absolute positions."""
    return _first_with_text(_mosaic, pictures, size, "position", rng)


def fuse(
    pictures: Sequence[ObjectPicture], size: int, rng: np.random.Generator
) -> SynthesisedPicture:
    """The first picture with the others embedded in it, and texts on their relations."""
    return _first_with_text(_embed, pictures, size, "relation", rng)


def _first_with_text(
    layout: Layout,
    pictures: Sequence[ObjectPicture],
    size: int,
    kind: str,
    rng: np.random.Generator,
) -> SynthesisedPicture:
    """Lays out the pictures anew until there is a text, at first one that tells twins apart.

    Where nothing can be told of so many, some are left out.
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
    if rng.random() < 0.5:
        return picture
    return ObjectPicture(picture.image[:, ::-1], picture.mask[:, ::-1], picture.class_name)


def _centres(masks: np.ndarray) -> np.ndarray:
    """[N, 2] normalised centres of the masks' boxes."""
    boxes = np.array([mask_to_box(mask) for mask in masks], dtype=np.float64)
    return (boxes[:, :2] + boxes[:, 2:]) / 2 / masks.shape[:0:-1]


def _resize(
    image: np.ndarray, mask: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
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
    image = np.zeros((size, size, 3), np.uint8)
    masks = np.zeros((len(pictures), size, size), bool)
    for i, (x0, y0, x1, y1) in enumerate(_cells(len(pictures), size, rng)):
        fitted = _fit(pictures[i], y1 - y0, x1 - x0, rng)
        image[y0:y1, x0:x1], masks[i, y0:y1, x0:x1] = fitted
    return image, masks


def _cells(count: int, size: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """`count` cells (x0, y0, x1, y1) in rows as even as they go, cut at uneven places."""
    num_rows = max(1, round(count**0.5))
    per_row = [count // num_rows + (r < count % num_rows) for r in range(num_rows)]
    ys = _cuts(num_rows, size, rng)
    cells = []
    for row, columns in enumerate(rng.permutation(per_row).tolist()):
        xs = _cuts(columns, size, rng)
        cells += [(xs[c], ys[row], xs[c + 1], ys[row + 1]) for c in range(columns)]
    return cells


def _cuts(count: int, size: int, rng: np.random.Generator) -> list[int]:
    inner = (np.arange(1, count) + rng.uniform(-0.25, 0.25, count - 1)) * size / count
    return [0, *np.rint(inner).astype(int).tolist(), size]


def _fit(
    picture: ObjectPicture, height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A picture cropped to a cell's shape around its object; squashed where that would cut it."""
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
    """Where a window of `length` begins that holds [low, high) if it can."""
    first, last = sorted((high - length, low))
    first, last = max(0, min(first, total - length)), max(0, min(last, total - length))
    return int(rng.integers(first, last + 1))


# ---------------------------------------------------------------- fusion


def _embed(
    pictures: Sequence[ObjectPicture], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    image, mask = _outer(pictures[0], size, rng)
    masks = [mask]
    for picture in pictures[1:]:
        pixels, inner = _cut_out(picture, size, rng)
        place = _free_place(masks, pixels.shape[:2], size, rng)
        if place is None:
            masks.append(np.zeros((size, size), bool))  # no room: this layout is not taken
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
    """The factor that makes the object as large as objects are in scenes."""
    x0, y0, x1, y1 = mask_to_box(picture.mask)
    side = rng.uniform(*_OBJECT_SIZE) * size
    return min(side / ((x1 - x0) * (y1 - y0)) ** 0.5, 0.6 * size / max(x1 - x0, y1 - y0))


def _outer(
    picture: ObjectPicture, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The outer picture, shrunk, its object anywhere, its background mirrored to fill S x S."""
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
    """For each of `size` pixels the source pixel, and whether it is the picture itself.

    The object [low, high) of a picture `length` long lands anywhere inside; beyond the picture the
    strip between its border and the object is mirrored to and fro, so no object comes twice. Where
    the object touches one border, the strip at the other serves both sides.
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
    """0, 1 .. strip - 1, strip - 1 .. 1, 0, 0, 1 ..."""
    strip = max(1, strip)
    phase = distance % (2 * strip)
    return np.minimum(phase, 2 * strip - 1 - phase)


def _cut_out(
    picture: ObjectPicture, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The rectangle around the object with some of its surroundings, at a scene's scale."""
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
    """(top, left) where a rectangle covers next to nothing of any object; None if none is found."""
    areas = [mask.sum() for mask in masks]
    for _ in range(40):
        top, left = (int(rng.integers(0, size - side + 1)) for side in shape)
        window = slice(top, top + shape[0]), slice(left, left + shape[1])
        if all(m[window].sum() <= 0.03 * a for m, a in zip(masks, areas, strict=True)):
            return top, left
    return None


def _soft_rim(shape: tuple[int, int], width: int) -> np.ndarray:
    """[h, w, 1] weights: 1 inside, falling towards the border over `width` pixels."""
    rise = [np.minimum(np.arange(n) + 1, n - np.arange(n)) / (width + 1) for n in shape]
    return np.minimum.outer(*rise).clip(0, 1)[..., None]

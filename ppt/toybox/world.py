"""The toy world: pictures of 96 x 96 pixels of objects in 16 classes and 8 colours, with masks.

Every picture is a pure function of (seed, index), so nothing is downloaded or stored. Coordinates
are pixels, with x to the right and y down. Boxes are (x0, y0, x1, y1) with x1 and y1 exclusive.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ppt.toybox.expressions import Caption, Expression, caption, referring_expressions
from ppt.toybox.shapes import CLASS_NAMES, COLOUR_NAMES, COLOURS, FREE_PAINTS, PAINTS, SHAPES

IMAGE_SIZE = 96
MIN_VISIBLE_PX = 30  # visible pixels that every object of a scene has at least

_SUPERSAMPLING = 2
_PARTS_PER_OBJECT = 16  # in the id map a pixel is object * 16 + part + 1, or 0 on the background
# The first number of the seeds, which keeps the random streams apart for any seed and index.
_SCENE, _OBJECT_CENTRIC, _CAPTION = 1, 2, 3


@dataclass
class SceneObject:
    """An object of a picture; its mask holds the pixels that no other object covers."""

    class_name: str
    colour: str  # of its main part, for example of a person's shirt
    box: tuple[int, int, int, int]  # tight around `mask`
    mask: np.ndarray  # bool [S, S]
    parts: dict[str, np.ndarray]  # part name -> bool [S, S]; disjoint, their union is `mask`


@dataclass
class Picture:
    """A picture, uint8 [S, S, 3] RGB, with its objects and expressions about one object each."""

    image: np.ndarray
    objects: list[SceneObject]
    expressions: list[Expression]


@dataclass
class _Placement:
    """An object before it is drawn; `box` is float (x0, y0, width, height) in pixels."""

    class_name: str
    colour: str
    box: np.ndarray
    flipped: bool
    tilt: float  # radians


def scene(
    seed: int,
    index: int,
    min_objects: int = 3,
    max_objects: int = 5,
    num_expressions: int = 2,
) -> Picture:
    """Draw a picture of several objects with expressions.

    Classes are often repeated, sometimes in the same colour.
    """
    rng = np.random.default_rng([_SCENE, seed, index])
    while True:
        placements = _scatter(int(rng.integers(min_objects, max_objects + 1)), rng)
        if len(placements) < min_objects:
            continue
        image, objects = _render(placements, rng)
        if min(o.mask.sum() for o in objects) < MIN_VISIBLE_PX:
            continue
        expressions = referring_expressions(objects, IMAGE_SIZE, num_expressions, rng)
        if len(expressions) == num_expressions:
            return Picture(image, objects, expressions)


def object_centric(seed: int, index: int) -> Picture:
    """Draw a picture of one large object near the centre, as in ImageNet.

    Its only expression is the name of its class.
    """
    rng = np.random.default_rng([_OBJECT_CENTRIC, seed, index])
    class_name = str(rng.choice(CLASS_NAMES))
    extent = _extent(class_name, rng.uniform(0.45, 0.75) * IMAGE_SIZE, rng)
    extent *= min(1.0, 0.92 * IMAGE_SIZE / extent.max())
    middle = IMAGE_SIZE / 2 + rng.uniform(-0.07, 0.07, 2) * IMAGE_SIZE
    corner = np.clip(middle - extent / 2, 2, IMAGE_SIZE - 2 - extent)
    image, objects = _render([_place(class_name, corner, extent, rng)], rng)
    return Picture(image, objects, [Expression(class_name, "class", 0)])


def captions(seed: int, index: int, picture: Picture, count: int) -> list[Caption]:
    """Draw `count` captions of a picture for CLIP's pretraining; every other one names colours."""
    rng = np.random.default_rng([_CAPTION, seed, index])
    return [caption(picture.objects, IMAGE_SIZE, bool(i % 2), rng) for i in range(count)]


def _extent(class_name: str, size: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the (width, height) in pixels of an object's box, whose area is size**2."""
    aspect = SHAPES[class_name].aspect * rng.uniform(0.88, 1.14)
    return size * np.array([aspect**0.5, aspect**-0.5])


def _place(
    class_name: str,
    corner: np.ndarray,
    extent: np.ndarray,
    rng: np.random.Generator,
    colour: str | None = None,
) -> _Placement:
    return _Placement(
        class_name,
        colour or str(rng.choice(COLOUR_NAMES)),
        np.concatenate([corner, extent]),
        flipped=bool(rng.random() < 0.5),
        tilt=rng.uniform(-0.12, 0.12),
    )


def _scatter(count: int, rng: np.random.Generator) -> list[_Placement]:
    """Place up to `count` objects so that they overlap little.

    About half of the objects after the first repeat a class that is already placed.
    """
    placements: list[_Placement] = []
    for _ in range(count):
        class_name, colour = str(rng.choice(CLASS_NAMES)), None
        if placements and rng.random() < 0.5:
            twin = placements[rng.integers(len(placements))]
            class_name = twin.class_name
            colour = twin.colour if rng.random() < 0.3 else None
        for _ in range(40):
            extent = _extent(class_name, rng.uniform(0.21, 0.36) * IMAGE_SIZE, rng)
            corner = rng.uniform(2, IMAGE_SIZE - 2 - extent)
            box = np.concatenate([corner, extent])
            if all(_overlap(box, other.box) < 0.08 for other in placements):
                placements.append(_place(class_name, corner, extent, rng, colour))
                break
    return placements


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the area that two boxes share, divided by the area of the smaller one."""
    shared = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(shared.clip(0)) / min(np.prod(a[2:]), np.prod(b[2:])))


def _render(
    placements: list[_Placement], rng: np.random.Generator
) -> tuple[np.ndarray, list[SceneObject]]:
    """Draw the objects on a background; return the picture, uint8 [S, S, 3], and the objects."""
    side = IMAGE_SIZE * _SUPERSAMPLING
    canvas = Image.fromarray(_background(rng)).resize((side, side), Image.Resampling.NEAREST)
    ids = Image.new("L", (side, side), 0)
    pencil, id_pencil = ImageDraw.Draw(canvas), ImageDraw.Draw(ids)
    for index, placement in enumerate(placements):
        _draw(placement, index, pencil, id_pencil, rng)
    small = np.asarray(canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX), np.float32)
    grain = rng.normal(0, 4, (IMAGE_SIZE, IMAGE_SIZE, 1))
    image = (small + grain).clip(0, 255).astype(np.uint8)
    id_map = np.asarray(ids)[1::_SUPERSAMPLING, 1::_SUPERSAMPLING]
    return image, [_seen(p, i, id_map) for i, p in enumerate(placements)]


def _draw(
    placement: _Placement,
    index: int,
    pencil: ImageDraw.ImageDraw,
    id_pencil: ImageDraw.ImageDraw,
    rng: np.random.Generator,
) -> None:
    """Draw an object's polygons, in colour with `pencil` and as numbers with `id_pencil`."""
    paint = {name: _rgb(hsv, rng) for name, hsv in PAINTS.items()}
    paint["main"] = _rgb(COLOURS[placement.colour], rng)
    names = _part_names(placement.class_name)
    free = {name: paint[str(rng.choice(FREE_PAINTS))] for name in names}
    corner, extent = placement.box[:2], placement.box[2:]
    turn = np.array(
        [
            [np.cos(placement.tilt), np.sin(placement.tilt)],
            [-np.sin(placement.tilt), np.cos(placement.tilt)],
        ]
    )
    for part in SHAPES[placement.class_name].parts:
        unit = part.polygon * (-1, 1) + (1, 0) if placement.flipped else part.polygon
        points = ((unit - 0.5) * extent) @ turn + corner + extent / 2
        outline = [tuple(xy) for xy in (points * _SUPERSAMPLING).tolist()]
        pencil.polygon(outline, fill=free[part.name] if part.paint == "free" else paint[part.paint])
        id_pencil.polygon(outline, fill=index * _PARTS_PER_OBJECT + names.index(part.name) + 1)


def _part_names(class_name: str) -> list[str]:
    return list(dict.fromkeys(part.name for part in SHAPES[class_name].parts))


def _seen(placement: _Placement, index: int, id_map: np.ndarray) -> SceneObject:
    """Return the object with the masks of its visible pixels, taken from the id map."""
    first = index * _PARTS_PER_OBJECT + 1
    mask = (id_map >= first) & (id_map < first + _PARTS_PER_OBJECT)
    parts = {name: id_map == first + i for i, name in enumerate(_part_names(placement.class_name))}
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    box = (0, 0, 0, 0)
    if len(columns):
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return SceneObject(
        placement.class_name,
        placement.colour,
        box,
        mask,
        {name: part for name, part in parts.items() if part.any()},
    )


def _rgb(hsv: tuple[float, float, float], rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw a colour near `hsv`, as (red, green, blue) in 0 to 255; greys and white stay grey."""
    hue = (hsv[0] + rng.uniform(-0.015, 0.015)) % 1
    saturation = np.clip(hsv[1] + rng.uniform(-0.1, 0.1), 0, 1) if hsv[1] > 0 else 0.0
    value = np.clip(hsv[2] + rng.uniform(-0.08, 0.05), 0, 1)
    red, green, blue = colorsys.hsv_to_rgb(hue, float(saturation), float(value))
    return int(255 * red), int(255 * green), int(255 * blue)


def _dull(rng: np.random.Generator) -> np.ndarray:
    """Draw a colour that no expression names, as float [3] in 0 to 255."""
    hsv = (rng.random(), rng.uniform(0.05, 0.28), rng.uniform(0.3, 0.85))
    return np.array(colorsys.hsv_to_rgb(*hsv), np.float32) * 255


def _background(rng: np.random.Generator) -> np.ndarray:
    """Draw a textured background of two dull colours with some clutter, uint8 [S, S, 3]."""
    ys, xs = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) / IMAGE_SIZE
    angle = rng.uniform(0, 2 * np.pi)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    texture = rng.choice(["plain", "gradient", "horizon", "stripes", "blotches"])
    if texture == "gradient":
        blend = (0.5 + 0.7 * (along - along.mean())).clip(0, 1)
    elif texture == "horizon":
        blend = (ys > rng.uniform(0.3, 0.75)).astype(np.float32)
    elif texture == "stripes":
        blend = 0.35 * (np.sin(2 * np.pi * rng.uniform(3, 10) * along) > 0)
    elif texture == "blotches":
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
        fine = coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        blend = np.asarray(fine, np.float32) / 255
    else:
        blend = np.zeros_like(xs)
    first, second = _dull(rng), _dull(rng)
    ground = Image.fromarray((first + (second - first) * blend[..., None]).astype(np.uint8))
    _scatter_clutter(ground, first, rng)
    return np.asarray(ground)


def _scatter_clutter(ground: Image.Image, tone: np.ndarray, rng: np.random.Generator) -> None:
    """Draw up to eight small polygons, which no expression names, in tones close to `tone`."""
    pencil = ImageDraw.Draw(ground)
    for _ in range(rng.integers(0, 9)):
        fill = tuple(int(v) for v in (tone + rng.uniform(-45, 45)).clip(0, 255))
        x, y = rng.uniform(0, IMAGE_SIZE, 2)
        radius = rng.uniform(1.5, 6)
        pencil.regular_polygon((x, y, radius), int(rng.integers(3, 7)), rng.uniform(0, 90), fill)

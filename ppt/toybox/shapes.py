"""The shapes and colours of the toy world's objects; every part of an object is a polygon.

Coordinates are (x, y) in the unit box of the object, with x to the right and y down. Parts are
drawn in order, so a later part covers an earlier one.
"""

from typing import NamedTuple

import numpy as np

Polygon = np.ndarray  # float [N, 2], (x, y) in the unit box


class Part(NamedTuple):
    """One polygon of an object; several may share a name, as both legs of a person do."""

    name: str
    paint: str  # "main": the object's colour; "free": one of FREE_PAINTS; else a key of PAINTS
    polygon: Polygon


class Shape(NamedTuple):
    """An object class: the ratio of its box's width to its height, and its parts, back to front."""

    aspect: float
    parts: tuple[Part, ...]


# The colours that expressions name, as (hue, saturation, value).
COLOURS = {
    "red": (0.0, 0.88, 0.85),
    "orange": (0.075, 0.92, 0.97),
    "yellow": (0.155, 0.85, 0.97),
    "green": (0.34, 0.78, 0.62),
    "blue": (0.61, 0.82, 0.86),
    "purple": (0.77, 0.68, 0.62),
    "pink": (0.92, 0.40, 0.98),
    "white": (0.0, 0.0, 0.97),
}

# The colours that no expression names: those of fixed materials, and the dull ones of FREE_PAINTS.
PAINTS = {
    "skin": (0.07, 0.42, 0.90),
    "black": (0.0, 0.0, 0.13),
    "brown": (0.07, 0.60, 0.42),
    "glass": (0.53, 0.28, 0.92),
    "gold": (0.12, 0.75, 0.80),
    "leaf": (0.27, 0.65, 0.38),
    "beige": (0.11, 0.25, 0.86),
    "grey": (0.0, 0.0, 0.55),
    "navy": (0.64, 0.60, 0.30),
    "teal": (0.50, 0.60, 0.45),
}
FREE_PAINTS = ("black", "brown", "beige", "grey", "navy", "teal")


def _ellipse(
    cx: float, cy: float, rx: float, ry: float, start: int = 0, stop: int = 360
) -> Polygon:
    angles = np.radians(np.linspace(start, stop, 25))
    return np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], 1)


def _box(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _dome(cx: float, base: float, rx: float, ry: float) -> Polygon:
    """Return the upper half of an ellipse whose centre is at y = base."""
    return _ellipse(cx, base, rx, ry, 180, 360)


def _ring(cx: float, cy: float, rx: float, ry: float, width: float) -> Polygon:
    return np.concatenate(
        [_ellipse(cx, cy, rx, ry), _ellipse(cx, cy, rx - width, ry - width)[::-1]]
    )


def _points(*xy: tuple[float, float]) -> Polygon:
    return np.array(xy, dtype=float)


def _petals(cx: float, cy: float, reach: float, size: float, count: int) -> list[Part]:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) - np.pi / 2
    return [
        Part(
            "petals",
            "main",
            _ellipse(cx + reach * np.cos(a), cy + 0.62 * reach * np.sin(a), size, 0.62 * size),
        )
        for a in angles
    ]


SHAPES: dict[str, Shape] = {
    "person": Shape(
        0.5,
        (
            Part("legs", "free", _box(0.27, 0.58, 0.48, 1.0)),
            Part("legs", "free", _box(0.52, 0.58, 0.73, 1.0)),
            Part(
                "arms",
                "skin",
                _points((0.16, 0.3), (0.3, 0.33), (0.16, 0.62), (0.0, 0.6)),
            ),
            Part(
                "arms",
                "skin",
                _points((0.84, 0.3), (0.7, 0.33), (0.84, 0.62), (1.0, 0.6)),
            ),
            Part(
                "shirt",
                "main",
                _points(
                    (0.25, 0.26),
                    (0.75, 0.26),
                    (0.95, 0.42),
                    (0.78, 0.48),
                    (0.77, 0.64),
                    (0.23, 0.64),
                    (0.22, 0.48),
                    (0.05, 0.42),
                ),
            ),
            Part("head", "skin", _ellipse(0.5, 0.14, 0.21, 0.13)),
            Part("hair", "brown", _dome(0.5, 0.1, 0.22, 0.1)),
        ),
    ),
    "dog": Shape(
        1.3,
        (
            Part(
                "tail",
                "free",
                _points((0.86, 0.42), (0.93, 0.1), (1.0, 0.12), (0.95, 0.5)),
            ),
            Part("legs", "free", _box(0.36, 0.6, 0.47, 1.0)),
            Part("legs", "free", _box(0.8, 0.6, 0.91, 1.0)),
            Part("body", "main", _ellipse(0.63, 0.54, 0.34, 0.24)),
            Part("head", "free", _ellipse(0.25, 0.32, 0.19, 0.22)),
            Part("head", "free", _ellipse(0.1, 0.4, 0.1, 0.11)),
            Part("ear", "black", _ellipse(0.37, 0.27, 0.07, 0.2)),
            Part("eye", "black", _ellipse(0.21, 0.25, 0.035, 0.05)),
        ),
    ),
    "bird": Shape(
        1.2,
        (
            Part("legs", "gold", _box(0.45, 0.75, 0.5, 1.0)),
            Part("legs", "gold", _box(0.58, 0.75, 0.63, 1.0)),
            Part("tail", "free", _points((0.76, 0.5), (1.0, 0.2), (1.0, 0.56))),
            Part("beak", "gold", _points((0.16, 0.17), (0.16, 0.37), (0.0, 0.3))),
            Part("body", "main", _ellipse(0.54, 0.56, 0.32, 0.27)),
            Part("body", "main", _ellipse(0.29, 0.28, 0.17, 0.22)),
            Part("wing", "free", _points((0.42, 0.46), (0.82, 0.42), (0.62, 0.72))),
            Part("eye", "black", _ellipse(0.23, 0.23, 0.035, 0.045)),
        ),
    ),
    "fish": Shape(
        1.7,
        (
            Part("tail", "free", _points((0.7, 0.5), (1.0, 0.1), (0.93, 0.5), (1.0, 0.9))),
            Part("fin", "free", _points((0.32, 0.2), (0.62, 0.22), (0.56, 0.0))),
            Part("body", "main", _ellipse(0.4, 0.52, 0.4, 0.38)),
            Part(
                "stripe",
                "free",
                _points((0.42, 0.15), (0.52, 0.16), (0.52, 0.88), (0.42, 0.89)),
            ),
            Part("eye", "black", _ellipse(0.17, 0.42, 0.045, 0.09)),
        ),
    ),
    "car": Shape(
        1.9,
        (
            Part(
                "body",
                "main",
                _points(
                    (0.0, 0.5),
                    (0.18, 0.44),
                    (0.3, 0.05),
                    (0.72, 0.05),
                    (0.86, 0.44),
                    (1.0, 0.52),
                    (1.0, 0.8),
                    (0.0, 0.8),
                ),
            ),
            Part(
                "windows",
                "glass",
                _points((0.25, 0.44), (0.34, 0.15), (0.5, 0.15), (0.5, 0.44)),
            ),
            Part(
                "windows",
                "glass",
                _points((0.55, 0.44), (0.55, 0.15), (0.68, 0.15), (0.77, 0.44)),
            ),
            Part("wheels", "black", _ellipse(0.23, 0.8, 0.115, 0.2)),
            Part("wheels", "black", _ellipse(0.77, 0.8, 0.115, 0.2)),
        ),
    ),
    "bus": Shape(
        1.45,
        (
            Part("body", "main", _box(0.0, 0.04, 1.0, 0.84)),
            Part("windows", "glass", _box(0.06, 0.16, 0.27, 0.44)),
            Part("windows", "glass", _box(0.33, 0.16, 0.54, 0.44)),
            Part("door", "free", _box(0.65, 0.16, 0.88, 0.82)),
            Part("wheels", "black", _ellipse(0.2, 0.86, 0.1, 0.14)),
            Part("wheels", "black", _ellipse(0.52, 0.86, 0.1, 0.14)),
        ),
    ),
    "boat": Shape(
        1.0,
        (
            Part("mast", "brown", _box(0.47, 0.0, 0.53, 0.75)),
            Part("sails", "main", _points((0.54, 0.04), (0.96, 0.66), (0.54, 0.66))),
            Part("sails", "main", _points((0.46, 0.14), (0.46, 0.66), (0.1, 0.66))),
            Part(
                "hull",
                "free",
                _points((0.0, 0.72), (1.0, 0.72), (0.82, 1.0), (0.18, 1.0)),
            ),
        ),
    ),
    "house": Shape(
        1.0,
        (
            Part("chimney", "free", _box(0.7, 0.05, 0.82, 0.35)),
            Part("wall", "main", _box(0.1, 0.42, 0.9, 1.0)),
            Part("roof", "brown", _points((0.0, 0.45), (0.5, 0.0), (1.0, 0.45))),
            Part("door", "black", _box(0.52, 0.64, 0.74, 1.0)),
            Part("window", "glass", _box(0.2, 0.55, 0.42, 0.75)),
        ),
    ),
    "tree": Shape(
        0.75,
        (
            Part("trunk", "brown", _box(0.4, 0.55, 0.6, 1.0)),
            Part("crown", "main", _ellipse(0.29, 0.45, 0.29, 0.21)),
            Part("crown", "main", _ellipse(0.71, 0.45, 0.29, 0.21)),
            Part("crown", "main", _ellipse(0.5, 0.24, 0.32, 0.24)),
        ),
    ),
    "flower": Shape(
        0.62,
        (
            Part("stem", "leaf", _box(0.45, 0.4, 0.55, 1.0)),
            Part("leaves", "leaf", _points((0.5, 0.95), (0.08, 0.68), (0.4, 0.74))),
            Part("leaves", "leaf", _points((0.5, 0.95), (0.92, 0.68), (0.6, 0.74))),
            *_petals(0.5, 0.3, 0.3, 0.2, 6),
            Part("heart", "gold", _ellipse(0.5, 0.3, 0.18, 0.11)),
        ),
    ),
    "mushroom": Shape(
        1.0,
        (
            Part(
                "stalk",
                "beige",
                _points((0.37, 0.45), (0.63, 0.45), (0.7, 1.0), (0.3, 1.0)),
            ),
            Part("cap", "main", _dome(0.5, 0.54, 0.5, 0.54)),
            Part("spots", "free", _ellipse(0.32, 0.3, 0.08, 0.08)),
            Part("spots", "free", _ellipse(0.66, 0.24, 0.09, 0.09)),
            Part("spots", "free", _ellipse(0.55, 0.44, 0.06, 0.06)),
        ),
    ),
    "umbrella": Shape(
        1.0,
        (
            Part("stick", "free", _box(0.46, 0.02, 0.54, 0.95)),
            Part(
                "stick",
                "free",
                _points((0.3, 0.86), (0.38, 0.86), (0.54, 0.92), (0.5, 1.0), (0.36, 1.0)),
            ),
            Part("canopy", "main", _dome(0.5, 0.52, 0.5, 0.46)),
        ),
    ),
    "chair": Shape(
        0.72,
        (
            Part("legs", "free", _box(0.04, 0.6, 0.17, 1.0)),
            Part("legs", "free", _box(0.83, 0.6, 0.96, 1.0)),
            Part("back", "main", _box(0.08, 0.0, 0.92, 0.52)),
            Part("slot", "free", _box(0.24, 0.12, 0.76, 0.2)),
            Part("seat", "beige", _box(0.0, 0.5, 1.0, 0.66)),
        ),
    ),
    "lamp": Shape(
        0.65,
        (
            Part("pole", "free", _box(0.44, 0.4, 0.56, 0.92)),
            Part("base", "free", _ellipse(0.5, 0.93, 0.32, 0.07)),
            Part(
                "shade",
                "main",
                _points((0.28, 0.0), (0.72, 0.0), (1.0, 0.46), (0.0, 0.46)),
            ),
        ),
    ),
    "cup": Shape(
        1.1,
        (
            Part("handle", "free", _ring(0.75, 0.45, 0.25, 0.26, 0.1)),
            Part("saucer", "beige", _ellipse(0.4, 0.92, 0.4, 0.08)),
            Part(
                "body",
                "main",
                _points((0.04, 0.1), (0.76, 0.1), (0.66, 0.9), (0.14, 0.9)),
            ),
            Part("rim", "black", _ellipse(0.4, 0.1, 0.36, 0.08)),
        ),
    ),
    "robot": Shape(
        0.72,
        (
            Part("antenna", "black", _box(0.47, 0.0, 0.53, 0.12)),
            Part("legs", "grey", _box(0.22, 0.72, 0.42, 1.0)),
            Part("legs", "grey", _box(0.58, 0.72, 0.78, 1.0)),
            Part("arms", "grey", _box(0.0, 0.4, 0.14, 0.72)),
            Part("arms", "grey", _box(0.86, 0.4, 1.0, 0.72)),
            Part("torso", "main", _box(0.15, 0.38, 0.85, 0.76)),
            Part("head", "free", _box(0.25, 0.08, 0.75, 0.35)),
            Part("eyes", "gold", _box(0.33, 0.16, 0.44, 0.25)),
            Part("eyes", "gold", _box(0.56, 0.16, 0.67, 0.25)),
        ),
    ),
}

CLASS_NAMES = tuple(SHAPES)
COLOUR_NAMES = tuple(COLOURS)

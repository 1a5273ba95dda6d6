"""Binary masks: conversion from polygons and COCO run lengths, boxes, and overlap.

Masks are bool [height, width] at the picture's original size. Boxes are (x0, y0, x1, y1) in pixels
with x1 and y1 exclusive. `counts` are COCO's compressed run lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools import mask as coco

from ppt.images.pictures import swaps_sides, turn_upright

MAX_OUTLINE = 2_000_000
"""The longest outline in pixels that the polygons of a mask may have together (our choice)."""

Polygons = list[list[float]]
"""Polygons in pixels, each as [x0, y0, x1, y1, ...]."""


def check_polygons(polygons: Any) -> Polygons:
    """Check all that can be checked of polygons without their picture, and return them.

    Raises:
        ValueError: if there is no polygon, or if one is no list of numbers, has fewer than 3 points
            (pycocotools would take 2 points for a box), an odd count of numbers, or a number that
            is not finite.
    """
    if not isinstance(polygons, list):
        raise ValueError(f"segmentation is a {type(polygons).__name__}, not polygons or RLE")
    if not polygons:
        raise ValueError("no polygon")
    for i, polygon in enumerate(polygons):
        if not isinstance(polygon, list) or not all(type(v) in (int, float) for v in polygon):
            raise ValueError(f"polygon {i} is no list of numbers [x0, y0, x1, y1, ...]")
        if len(polygon) < 6:
            raise ValueError(f"polygon {i} has {len(polygon) // 2} points, needs at least 3")
        if len(polygon) % 2:
            raise ValueError(f"polygon {i} has {len(polygon)} numbers, no even count")
        if any(type(v) is float and not math.isfinite(v) for v in polygon):
            raise ValueError(f"polygon {i} has a coordinate that is no finite number")
    return polygons


def polygons_to_mask(polygons: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the union of polygons as a mask, without what reaches out of the picture.

    Args:
        polygons: the polygons, each as [x0, y0, x1, y1, ...] in pixels.
        size: the mask's (height, width).

    Raises:
        ValueError: for polygons that `check_polygons` refuses, if one reaches out of the picture by
            more than its longer side, if the outline is longer than `MAX_OUTLINE`, or if no pixel
            of the picture is covered.
    """
    low, high = -max(size), 2 * max(size)
    outline = 0.0
    for i, polygon in enumerate(check_polygons(polygons)):
        if not all(low <= v <= high for v in polygon):
            raise ValueError(f"polygon {i} lies far outside its picture of {wide(size)} pixels")
        points = list(zip(polygon[::2], polygon[1::2], strict=True))
        outline += sum(math.dist(a, b) for a, b in pairwise([*points, points[0]]))
    if outline > MAX_OUTLINE:
        raise ValueError(f"polygon outlines are {outline:,.0f} pixels long, over {MAX_OUTLINE:,}")
    flat = [[float(v) for v in polygon] for polygon in polygons]
    mask = coco.decode(coco.merge(coco.frPyObjects(flat, *size))).astype(bool)
    return require_pixels(mask, "polygon")


def annotation_to_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of a COCO `segmentation`, which holds polygons or run lengths.

    Args:
        segmentation: a list of polygons, or a dictionary with `size` and `counts`.
        size: the (height, width) of the picture that was annotated.

    Raises:
        ValueError: if the segmentation is not valid, if its size is not that of the picture, or if
            it covers no pixel of the picture.
    """
    if not isinstance(segmentation, dict):
        return polygons_to_mask(segmentation, size)
    if lacking := sorted({"size", "counts"} - segmentation.keys()):
        raise ValueError(f"run lengths lack {lacking}")
    if segmentation["size"] != list(size):
        raise ValueError(f"run lengths of {segmentation['size']!r:.40}, picture is {list(size)}")
    runs = _run_lengths(segmentation["counts"])
    if min(runs, default=0) < 0:
        raise ValueError(f"a run length is negative: {min(runs)}")
    height, width = size
    if sum(runs) != height * width:
        raise ValueError(f"run lengths cover {sum(runs)} pixels of {height * width}")
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, runs)  # the runs go down the columns
    return require_pixels(np.ascontiguousarray(columns.reshape(width, height).T), "run lengths")


def _run_lengths(counts: Any) -> list[int]:
    """Return COCO's run lengths, given as a list or compressed; ValueError if they are neither."""
    if isinstance(counts, list) and all(type(run) is int for run in counts):
        return counts
    if not isinstance(counts, str | bytes):
        raise ValueError("run lengths are neither a list of integers nor compressed")
    # A number is written in groups of 5 bits, the lowest first. Bit 5 of a character says that
    # another group follows, bit 4 of the last group is the sign, and from the fourth number on
    # what is written is the difference to the number before the last.
    runs: list[int] = []
    number = shift = 0
    for code in counts.encode() if isinstance(counts, str) else counts:
        group = code - ord("0")
        if not 0 <= group < 64:
            raise ValueError(f"compressed run lengths hold the character {chr(code)!r}")
        if shift > 60:
            raise ValueError("compressed run lengths hold a number of more than 64 bits")
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("compressed run lengths are cut off")
    return runs


def require_pixels(mask: np.ndarray, what: str) -> np.ndarray:
    """Return a mask. Raises ValueError, which names the mask by `what`, if it is empty."""
    if not mask.any():
        raise ValueError(f"{what} covers no pixel of the picture")
    return mask


def fit_mask(mask: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Bring a mask of the size at which a picture was annotated to the upright picture.

    A mask may belong to the upright picture, or to the picture as its file stores it if the two
    differ in size. Between both the ratio of the sides decides.

    Args:
        mask: bool, of the annotated (height, width).
        size: the (height, width) of the upright picture.
        orientation: the EXIF orientation by which the picture was turned.

    Returns:
        The mask, bool of `size`, scaled to the nearest pixel and turned if it needs to be.

    Raises:
        ValueError: if neither frame has the mask's ratio of sides, up to the rounding to pixels, or
            if scaling leaves nothing of the mask.
    """
    frames = [size, size[::-1]] if swaps_sides(orientation) else [size]
    height, width = mask.shape
    frame = min(frames, key=lambda f: abs(height * f[1] - width * f[0]))
    if not _is_scaled(mask.shape, frame):
        raise ValueError(f"it is of a picture of {wide(mask.shape)}, the file is {wide(size)}")
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for old, new in zip(mask.shape, frame, strict=True)
    )
    scaled = mask[np.ix_(rows, columns)]
    if frame != size:
        scaled = turn_upright(scaled, orientation)
    return require_pixels(scaled, f"what is scaled to {wide(size)} pixels")


def _is_scaled(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether two sizes are those of one picture at two scales.

    The smaller size is then the larger one times a scale, with both sides rounded to the nearest
    pixel, up, or down.
    """
    large, small = sorted((one, other), key=math.prod, reverse=True)
    sides = list(zip(small, large, strict=True))
    return any(
        max((s + low) / side for s, side in sides) <= min((s + low + 1) / side for s, side in sides)
        for low in (-0.5, -1, 0)
    )


def wide(size: tuple[int, ...]) -> str:
    """Return a (height, width) as people write it: "640x480" is 640 pixels wide."""
    return f"{size[1]}x{size[0]}"


def encode_rle(mask: np.ndarray) -> bytes:
    """Encode a mask, bool [H, W], as `counts`."""
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]


def decode_rle(counts: bytes, height: int, width: int) -> np.ndarray:
    """Decode `counts` to a mask, bool [height, width]."""
    return coco.decode({"size": [height, width], "counts": counts}).view(bool)


def decode_rles(counts: Sequence[bytes], height: int, width: int) -> np.ndarray:
    """Decode N `counts` of masks of one size to bool [N, height, width]."""
    if not counts:
        return np.zeros((0, height, width), bool)
    stack = coco.decode([{"size": [height, width], "counts": c} for c in counts])
    return stack.view(bool).transpose(2, 0, 1)


def rle_boxes(counts: Sequence[bytes], height: int, width: int) -> np.ndarray:
    """Return the tight boxes, int64 [N, 4], of N masks of one size given as `counts`.

    The box of an empty mask is all 0.
    """
    if not counts:
        return np.zeros((0, 4), np.int64)
    boxes = coco.toBbox([{"size": [height, width], "counts": c} for c in counts])
    boxes[:, 2:] += boxes[:, :2]
    return np.where(boxes[:, 2:3] > boxes[:, :1], boxes, 0).astype(np.int64)


def mask_to_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tight box of a mask. Raises ValueError if the mask is empty."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        raise ValueError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two masks of one size, which is 0 if both are empty."""
    intersection = np.count_nonzero(a & b)
    union = np.count_nonzero(a) + np.count_nonzero(b) - intersection
    return intersection / union if union else 0.0


def mask_area(counts: bytes) -> int:
    """Return the number of pixels of a mask given as `counts`; its size is not needed for this."""
    return int(coco.area({"size": [1, 1], "counts": counts}))


def points_on(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return whether each point lies on a mask, bool [P].

    Args:
        mask: bool [H, W].
        points: [P, 2] normalised (x, y).
    """
    height, width = mask.shape
    columns, rows = (points * (width, height)).astype(np.int64).T
    return mask[rows.clip(0, height - 1), columns.clip(0, width - 1)]

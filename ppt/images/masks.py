"""Binary masks: conversion from polygons and COCO run lengths, boxes, and overlap.

Masks are bool [height, width] at the picture's original size. Boxes are (x0, y0, x1, y1) in pixels
with x1 and y1 exclusive. `counts` are COCO's compressed run lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco


def polygons_to_mask(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Return the union of polygons as a mask.

    Args:
        polygons: the polygons, each as [x0, y0, x1, y1, ...] in pixels.
        size: the mask's (height, width).

    Raises:
        ValueError: if there is no polygon, or if one has fewer than 3 points (pycocotools would
            take 2 points for a box), an odd count of numbers, or a number that is not finite.
    """
    if not polygons:
        raise ValueError("no polygon")
    for i, polygon in enumerate(polygons):
        if len(polygon) < 6:
            raise ValueError(f"polygon {i} has {len(polygon) // 2} points, needs at least 3")
        if len(polygon) % 2:
            raise ValueError(f"polygon {i} has {len(polygon)} numbers, no even count")
        if not np.isfinite(np.asarray(polygon, dtype=np.float64)).all():
            raise ValueError(f"polygon {i} has a coordinate that is no finite number")
    height, width = size
    flat = [[float(v) for v in polygon] for polygon in polygons]
    return coco.decode(coco.merge(coco.frPyObjects(flat, height, width))).astype(bool)


def annotation_to_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of a COCO `segmentation`, which holds polygons or run lengths.

    Args:
        segmentation: a list of polygons, or a dictionary with `size` and `counts`.
        size: the picture's (height, width).

    Raises:
        ValueError: if the segmentation is not valid or its size is not that of the picture.
    """
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != list(size):
            raise ValueError(f"run lengths of {segmentation['size']}, picture is {list(size)}")
        if isinstance(segmentation["counts"], list):
            total = sum(segmentation["counts"])
            if total != size[0] * size[1]:
                raise ValueError(f"run lengths cover {total} pixels of {size[0] * size[1]}")
            segmentation = coco.frPyObjects(segmentation, *size)
        return coco.decode(segmentation).astype(bool)
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation is a {type(segmentation).__name__}, not polygons or RLE")
    return polygons_to_mask(segmentation, size)


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

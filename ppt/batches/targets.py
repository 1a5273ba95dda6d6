"""The targets of pseudo labels: their masks in the segmenter's frame, and points drawn from them.

A node of labels has a table of targets beside the labels, with a row for each candidate in the
order of the labels: the mask in the padded square (see `ppt.models.segmenter`) as packed bits, and
the box. They are written once, with the labels, so that no iteration decodes run lengths.

Letters: G candidates, M points, S the side of the padded square at low resolution.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ppt.images.masks import decode_rles, rle_boxes
from ppt.store.arrays import tensor_field, to_tensors

_AT_ONCE = 64
"""The number of masks that are decoded together."""


def target_table(labels: pa.Table, low_res_size: int, image_size: int) -> pa.Table:
    """Make the targets of all candidates of a table of labels.

    Args:
        labels: rows of `ppt.store.schema.LABELS`.
        low_res_size: S of the segmenter.
        image_size: that of the segmenter.

    Returns:
        `mask`, uint8 [S, S / 8 rounded up], and `box`, float32 [4], the (x0, y0, x1, y1) of the
        original mask, normalised. The box of an empty mask is all 0.
    """
    counts, sizes = [], []
    columns = (labels[name].to_pylist() for name in ("candidates", "height", "width"))
    for candidates, height, width in zip(*columns, strict=True):
        counts += [candidate["mask"] for candidate in candidates]
        sizes += [(height, width)] * len(candidates)
    masks = np.zeros((len(counts), low_res_size, -(-low_res_size // 8)), np.uint8)
    boxes = np.zeros((len(counts), 4), np.float32)
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, size in enumerate(sizes):
        by_size.setdefault(size, []).append(i)
    for (height, width), members in by_size.items():
        low_res = LowRes(low_res_size, image_size, height, width)
        for start in range(0, len(members), _AT_ONCE):
            some = members[start : start + _AT_ONCE]
            of_some = [counts[i] for i in some]
            full = decode_rles(of_some, height, width)
            in_pixels = rle_boxes(of_some, height, width)
            boxes[some] = in_pixels / (width, height, width, height)
            for i, mask, box in zip(some, full, in_pixels, strict=True):
                if box[2]:
                    masks[i] = np.packbits(low_res(mask, box), axis=-1)
    fields = [tensor_field("mask", masks.shape[1:], "uint8"), tensor_field("box", (4,), "float32")]
    return pa.Table.from_arrays([to_tensors(masks), to_tensors(boxes)], schema=pa.schema(fields))


def unpack(masks: Tensor) -> Tensor:
    """Return packed masks, uint8 [G, S, S / 8 rounded up], as uint8 [G, S, S] of 0 and 1."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=masks.device)
    bits = (masks[..., None] >> shifts) & 1
    return bits.flatten(2)[..., : masks.shape[1]]


class LowRes:
    """Brings masks of pictures of one size into the padded square [S, S].

    A pixel is True where the mask covers at least half of its area. Where a mask is too thin for
    that, the pixels that it covers most are True. The padding is False.
    """

    def __init__(self, low_res_size: int, image_size: int, height: int, width: int) -> None:
        self.size = low_res_size
        # The long side is scaled to image_size, the other one is rounded to whole pixels.
        scaled = [int(side * image_size / max(height, width) + 0.5) for side in (height, width)]
        steps = image_size / low_res_size * np.array([height, width]) / scaled
        self._steps = steps  # sides of a low-resolution pixel in original pixels, y and x
        self._rows = self._weights(height, steps[0])
        self._columns = self._weights(width, steps[1])

    def _weights(self, side: int, step: float) -> np.ndarray:
        """The share of each low-resolution pixel that each original one covers: [size, side]."""
        begin = np.arange(self.size)[:, None] * step
        pixel = np.arange(side)
        shared = np.minimum(begin + step, pixel + 1) - np.maximum(begin, pixel)
        return (shared.clip(0) / step).astype(np.float32)

    def __call__(self, mask: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Scale a mask [height, width], of which only the tight `box` is read, to [S, S]."""
        x0, y0, x1, y1 = box
        top, left = np.floor(box[1::-1] / self._steps).astype(int)
        bottom, right = np.ceil(box[:1:-1] / self._steps).astype(int)
        part = np.ascontiguousarray(mask[y0:y1, x0:x1], np.float32)
        rows, columns = self._rows[top:bottom, y0:y1], self._columns[left:right, x0:x1]
        covered = rows @ part @ columns.T
        low_res = np.zeros((self.size, self.size), bool)
        # Slightly less than one half, which a sum may miss by rounding.
        low_res[top:bottom, left:right] = covered >= min(0.4999, covered.max())
        return low_res


def draw_points(
    masks: np.ndarray,
    boxes: np.ndarray,
    sizes: np.ndarray,
    num_points: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw M points uniformly in the box of each mask (Section 3.2).

    A point is positive where the low-resolution mask is set, as for the loss of the point labels.
    Where no point is positive, the first one is moved onto the mask.

    Args:
        masks: [G, S, S / 8] packed bits.
        boxes: [G, 4] normalised.
        sizes: [G, 2] (height, width) of each candidate's picture.
        num_points: M.
        rng: draws the points.

    Returns:
        The points, float32 [G, M, 2] normalised (x, y), and their labels, float32 [G, M].
    """
    side = masks.shape[1]
    to_cells = side * sizes[:, ::-1] / sizes.max(1, keepdims=True)  # [G, 2] of the whole picture
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    points = low + rng.random((len(masks), num_points, 2)) * (high - low)
    x, y = (points * to_cells[:, None]).astype(np.int64).clip(0, side - 1).transpose(2, 0, 1)
    labels = (masks[np.arange(len(masks))[:, None], y, x >> 3] >> (7 - (x & 7))) & 1
    for i in np.flatnonzero(~labels.any(1)):
        cell = rng.choice(np.flatnonzero(np.unpackbits(masks[i], axis=-1, count=side)))
        inside = (np.array([cell % side, cell // side]) + rng.random(2)) / to_cells[i]
        points[i, 0] = inside.clip(boxes[i, :2], boxes[i, 2:])
        labels[i, 0] = 1
    return points.astype(np.float32), labels.astype(np.float32)

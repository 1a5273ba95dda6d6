"""From Arrow rows to a `Batch`: a row holds the features and expressions of one picture.

The columns are read as a whole: no Python objects are made for pixels of masks or for features.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ppt.batches.batch import Batch, Target
from ppt.batches.features import read_feature, read_segmenter_features
from ppt.images.masks import decode_rles, rle_boxes

__all__ = ["Batch", "Target", "collate"]


def collate(
    table: pa.Table,
    *,
    num_points: int,
    low_res_size: int,
    image_size: int,
    rng: np.random.Generator | None,
    with_targets: bool = True,
) -> Batch:
    """Make a batch of the pictures of a table and all their expressions.

    Args:
        table: what `gather.picture_table` made.
        num_points: M, how many point targets are drawn in the box of each candidate's mask.
        low_res_size: that of the segmenter.
        image_size: that of the segmenter.
        rng: draws the point targets; may be None without targets.
        with_targets: whether the candidates become targets. Those with an empty mask do not.

    Returns:
        The batch on the CPU, its features in float32.
    """
    sizes = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], 1).astype(np.int64)
    expressions = table["expressions"].combine_chunks()
    if isinstance(expressions, pa.ChunkedArray):  # no chunk at all
        expressions = pa.array([], expressions.type)
    rows, flat = expressions.value_parent_indices(), expressions.flatten()
    picture_index = rows.to_numpy().astype(np.int64)
    targets = None
    if with_targets:
        if rng is None:
            raise ValueError("rng must be given: point targets are drawn at random")
        candidates = flat.field("candidates")
        targets = _targets(
            candidates, picture_index, sizes, num_points, low_res_size, image_size, rng
        )
    word_features, word_mask = _words(flat)
    levels = sum(name.startswith("visual_features_") for name in table.column_names)
    return Batch(
        pictures=table["picture"].to_pylist(),
        sizes=torch.from_numpy(sizes),
        visual_features=[read_feature(table, f"visual_features_{n}") for n in range(levels)],
        segmenter_features=read_segmenter_features(table),
        picture_index=torch.from_numpy(picture_index),
        expression_ids=flat.field("expression_id").to_pylist(),
        texts=flat.field("text").to_pylist(),
        word_features=word_features,
        word_mask=word_mask,
        targets=targets,
    )


def _words(expressions: pa.StructArray) -> tuple[Tensor, Tensor]:
    """Read word features [B, T, Dt], 0 beyond the end of a text, and the mask [B, T] of words."""
    lengths = expressions.field("num_words").to_numpy(zero_copy_only=False)
    values = [
        np.frombuffer(features.as_buffer(), np.float16).reshape(length, -1)
        for features, length in zip(expressions.field("word_features"), lengths, strict=True)
    ]
    widths = {v.shape[1] for v in values} or {0}
    if len(widths) > 1:
        raise ValueError(f"word_features of different widths in one batch: {sorted(widths)}")
    words = np.zeros((len(values), int(lengths.max(initial=0)), widths.pop()), np.float32)
    for i, value in enumerate(values):
        words[i, : len(value)] = value
    mask = np.arange(words.shape[1]) < lengths[:, None]
    return torch.from_numpy(words), torch.from_numpy(mask)


# ---------------------------------------------------------------- targets


class _LowRes:
    """Brings masks of pictures of one size into the padded square [H4, W4].

    A pixel is True where the mask covers at least half of its area. Where a mask is
    too thin for that, the pixels that it covers most are True. The padding is False.
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
        """Scale a mask [height, width], of which only the tight `box` is read, to [H4, W4]."""
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


def _targets(
    candidates: pa.ListArray,
    picture_index: np.ndarray,
    sizes: np.ndarray,
    num_points: int,
    low_res_size: int,
    image_size: int,
    rng: np.random.Generator,
) -> list[Target]:
    flat = candidates.flatten()
    expression_of = candidates.value_parent_indices().to_numpy().astype(np.int64)
    counts = flat.field("mask").to_pylist()
    referent = flat.field("is_referent").to_numpy(zero_copy_only=False).astype(np.float32)
    num = len(counts)
    masks = np.zeros((num, low_res_size, low_res_size), np.float32)
    points = np.zeros((num, num_points, 2), np.float32)
    labels = np.zeros((num, num_points), np.float32)
    filled = np.zeros(num, bool)
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, (height, width) in enumerate(sizes[picture_index[expression_of]].tolist()):
        by_size.setdefault((height, width), []).append(i)
    for size, members in by_size.items():
        some = [counts[i] for i in members]
        full, boxes = decode_rles(some, *size), rle_boxes(some, *size)
        low_res = _LowRes(low_res_size, image_size, *size)
        filled[members] = boxes[:, 2] > 0
        for i, mask, box in zip(members, full, boxes, strict=True):
            if filled[i]:
                masks[i] = low_res(mask, box)
        points[members], labels[members] = _box_points(full, boxes, num_points, rng)
    of_expression = np.searchsorted(expression_of, np.arange(len(candidates) + 1))
    targets = []
    for start, stop in zip(of_expression, of_expression[1:], strict=False):
        chosen = np.arange(start, stop)[filled[start:stop]]
        parts = (masks[chosen], points[chosen], labels[chosen], referent[chosen])
        targets.append(Target(*(torch.from_numpy(part) for part in parts)))
    return targets


def _box_points(
    masks: np.ndarray, boxes: np.ndarray, num_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw M points in the box of each mask [N, h, w], as `labels.points.sample_box_points` does.

    Returns normalised points [N, M, 2] and their labels [N, M]. Where no point lies on the mask,
    the first one is moved onto it.
    """
    num, height, width = masks.shape
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    points = low + rng.random((num, num_points, 2)) * (high - low)
    columns, rows = points.astype(np.int64).transpose(2, 0, 1)
    labels = masks[np.arange(num)[:, None], rows, columns]
    for i in np.flatnonzero(~labels.any(1) & (boxes[:, 2] > 0)):
        pixel = rng.choice(np.flatnonzero(masks[i]))
        points[i, 0] = np.array([pixel % width, pixel // width]) + rng.random(2)
        labels[i, 0] = True
    return points / (width, height), labels

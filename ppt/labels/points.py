"""Points as prompts for SAM: from a similarity map, or from a mask as training targets.

Points are (x, y), normalised to [0, 1] of the original picture. Labels: 1 foreground, 0 background.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ppt.config import PointRecipe
from ppt.labels.similarity import min_max
from ppt.masks import mask_to_box

_FINE = 4  # `near` looks for its points on a map as many times finer than CLIP's grid
_RESPONSE = 0.5  # `near`: what belongs to the response
_MARGIN = 0.12  # `near`: by how much of its width the response's box is enlarged on each side
_LOW_SHARE = 5  # `near`: negatives are of the lowest fifth of that box


def points_from_map(similarity: Tensor, recipe: PointRecipe) -> tuple[np.ndarray, np.ndarray]:
    """Map [g, g] in [0, 1] -> points float32 [P, 2] and labels int64 [P], as the recipe says."""
    method = {"surgery": _surgery_points, "near": _near_points}[recipe.method]
    return method(similarity.detach().float().cpu(), recipe)


def _resized(similarity: Tensor, side: int) -> np.ndarray:
    """Bilinear [side, side], min-max again."""
    fitted = F.interpolate(
        similarity[None, None], (side, side), mode="bilinear", align_corners=False
    )
    return min_max(fitted.flatten()).view(side, side).numpy()


def _cell_centres(cells: np.ndarray, side: int) -> np.ndarray:
    """Flat cell numbers -> float32 [P, 2] (x, y)."""
    return ((np.stack([cells % side, cells // side], -1) + 0.5) / side).astype(np.float32)


def _labelled(
    positive: np.ndarray, negative: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([1, 0], [len(positive), len(negative)]).astype(np.int64)
    return _cell_centres(np.concatenate([positive, negative]), side), labels


def _surgery_points(similarity: Tensor, recipe: PointRecipe) -> tuple[np.ndarray, np.ndarray]:
    """CLIP Surgery as published: on a map of half the side, the n highest and the n lowest cells.

    n is how many cells pass the threshold, at most half of all, at least one.
    """
    side = max(1, similarity.shape[0] // 2)
    values = _resized(similarity, side).ravel()
    passing = int((values >= recipe.threshold).sum())
    count = max(1, min(passing, len(values) // 2))
    order = np.argsort(-values, kind="stable")
    return _labelled(order[:count], order[::-1][: min(count, len(order) - 1)], side)


def _near_points(similarity: Tensor, recipe: PointRecipe) -> tuple[np.ndarray, np.ndarray]:
    """Positives spread over the response from its peak on, negatives low and close around it.

    The response is what passes the threshold; its surroundings are the enlarged box of what passes
    one half. Points are chosen far apart from each other, without chance (our choice).
    """
    side = similarity.shape[0] * _FINE
    values = _resized(similarity, side)
    high = np.flatnonzero(values >= recipe.threshold)
    if not len(high):
        high = np.array([values.argmax()])
    positive = _spread(high, int(values.argmax()), recipe.num_positive, side)
    box = _enlarged_box(values >= _RESPONSE, side)
    around = np.zeros((side, side), bool)
    around[box[1] : box[3], box[0] : box[2]] = True
    around &= values < _RESPONSE
    cells = np.flatnonzero(around)
    if not recipe.num_negative or not len(cells):
        return _labelled(positive, positive[:0], side)
    order = cells[np.argsort(values.ravel()[cells], kind="stable")]
    low = order[: max(2 * recipe.num_negative, len(order) // _LOW_SHARE)]
    negative = _spread(low, int(low[0]), recipe.num_negative, side)
    return _labelled(positive, negative, side)


def _enlarged_box(response: np.ndarray, side: int) -> tuple[int, int, int, int]:
    if not response.any():
        return 0, 0, side, side
    x0, y0, x1, y1 = mask_to_box(response)
    dx, dy = (round(_MARGIN * length) + _FINE // 2 for length in (x1 - x0, y1 - y0))
    return max(0, x0 - dx), max(0, y0 - dy), min(side, x1 + dx), min(side, y1 + dy)


def _spread(cells: np.ndarray, first: int, count: int, side: int) -> np.ndarray:
    """Up to `count` of the cells: `first`, then each time the one farthest from those taken."""
    places = np.stack([cells % side, cells // side], -1).astype(np.float64)
    taken = [first]
    distance = np.hypot(*(places - (first % side, first // side)).T)
    while len(taken) < min(count, len(cells)):
        farthest = int(distance.argmax())
        taken.append(int(cells[farthest]))
        distance = np.minimum(distance, np.hypot(*(places - places[farthest]).T))
    return np.array(taken)


def sample_box_points(
    mask: np.ndarray, num_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Section 3.2: points uniformly in the box of bool [H, W]; inside the mask they are positive.

    float32 [M, 2] and [M]. At least one is positive (our choice: SAM needs one). `ValueError` for
    an empty mask.
    """
    x0, y0, x1, y1 = mask_to_box(mask)
    points = rng.uniform((x0, y0), (x1, y1), (num_points, 2))
    columns, rows = points.astype(np.int64).T
    labels = mask[rows, columns]
    if not labels.any():
        pixel = rng.choice(np.flatnonzero(mask))
        points[0] = np.array([pixel % mask.shape[1], pixel // mask.shape[1]]) + rng.random(2)
        labels[0] = True
    height, width = mask.shape
    return (points / (width, height)).astype(np.float32), labels.astype(np.float32)

"""Point prompts for SAM, chosen from a similarity map.

Points are (x, y), normalised to [0, 1] of the original picture. Labels are 1 for foreground and 0
for background. "Cells" are the entries of a similarity map of `side` x `side`.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ppt.config import PointRecipe
from ppt.images.masks import mask_to_box
from ppt.labels.similarity import min_max

PUBLISHED_RECIPE = PointRecipe(method="surgery", threshold=0.8)
"""The recipe by which CLIP Surgery turns a similarity map into points."""

PUBLISHED_IMAGE_SIZE = 512
"""The side in pixels of the pictures from which CLIP Surgery's demonstration makes its maps."""

# The parameters of the method `near` (our choice).
_FINE = 4  # the factor by which the similarity map is enlarged
_RESPONSE = 0.5  # the least value of the cells that belong to the response
_MARGIN = 0.12  # the share of its sides by which the response's box is enlarged on each side
_LOW_SHARE = 5  # negative points are among the lowest 1 / _LOW_SHARE of the cells around it


def points_from_map(similarity: Tensor, recipe: PointRecipe) -> tuple[np.ndarray, np.ndarray]:
    """Choose point prompts from a similarity map [g, g] in [0, 1] by the method of the recipe.

    Returns:
        The points, float32 [P, 2], and their labels, int64 [P].
    """
    method = {"surgery": _surgery_points, "near": _near_points}[recipe.method]
    return method(similarity.detach().float().cpu(), recipe)


def _resized(similarity: Tensor, side: int) -> np.ndarray:
    """Scale a map bilinearly to [side, side], and its values to [0, 1]."""
    fitted = F.interpolate(
        similarity[None, None], (side, side), mode="bilinear", align_corners=False
    )
    return min_max(fitted.flatten()).view(side, side).numpy()


def _cell_centres(cells: np.ndarray, side: int) -> np.ndarray:
    """Return the centres of cells, float32 [P, 2] normalised (x, y), from their flat indices."""
    return ((np.stack([cells % side, cells // side], -1) + 0.5) / side).astype(np.float32)


def _labelled(
    positive: np.ndarray, negative: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the points and labels of positive and negative cells, given by their flat indices."""
    labels = np.repeat([1, 0], [len(positive), len(negative)]).astype(np.int64)
    return _cell_centres(np.concatenate([positive, negative]), side), labels


def _surgery_points(similarity: Tensor, recipe: PointRecipe) -> tuple[np.ndarray, np.ndarray]:
    """Choose points as published for CLIP Surgery.

    On a map of half the side, the n highest cells are positive and the n lowest ones negative. n is
    the number of cells that reach the threshold, but at least one and at most half of all cells.
    """
    side = max(1, similarity.shape[0] // 2)
    values = _resized(similarity, side).ravel()
    passing = int((values >= recipe.threshold).sum())
    count = max(1, min(passing, len(values) // 2))
    order = np.argsort(-values, kind="stable")
    return _labelled(order[:count], order[::-1][: min(count, len(order) - 1)], side)


def _near_points(similarity: Tensor, recipe: PointRecipe) -> tuple[np.ndarray, np.ndarray]:
    """Choose positive points within the response and negative ones close around it.

    The positive points are the maximum and further cells that reach the threshold. The negative
    points are low cells below _RESPONSE, in the enlarged box of the cells that reach it. The points
    of a label are far apart from each other. Nothing is random.
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
    """Return the enlarged box (x0, y0, x1, y1) of the response, or the whole map if it is empty."""
    if not response.any():
        return 0, 0, side, side
    x0, y0, x1, y1 = mask_to_box(response)
    dx, dy = (round(_MARGIN * length) + _FINE // 2 for length in (x1 - x0, y1 - y0))
    return max(0, x0 - dx), max(0, y0 - dy), min(side, x1 + dx), min(side, y1 + dy)


def _spread(cells: np.ndarray, first: int, count: int, side: int) -> np.ndarray:
    """Choose up to `count` of the cells by farthest-point sampling, beginning with `first`."""
    places = np.stack([cells % side, cells // side], -1).astype(np.float64)
    taken = [first]
    distance = np.hypot(*(places - (first % side, first // side)).T)
    while len(taken) < min(count, len(cells)):
        farthest = int(distance.argmax())
        taken.append(int(cells[farthest]))
        distance = np.minimum(distance, np.hypot(*(places - places[farthest]).T))
    return np.array(taken)

"""Telling the pictures of the embedded world from all others, by their size and their grain."""

from __future__ import annotations

import numpy as np

from ppt.toybox.world import IMAGE_SIZE

# Every picture of the world has grey grain of one strength on areas of one colour;
# docs/predict.md has the error rates.
_SAME_COLOUR = 2  # the most by which the differences of a pixel's channels vary on such an area
_LEAST_SAME = 0.5  # the least share of neighbours on such an area
_GRAIN = (11.0, 20.0)  # the median of |4 pixel - its 4 neighbours|, of the mean of the channels


def is_of_the_world(image: np.ndarray) -> bool:
    """Say whether a picture, uint8 [H, W, 3], is one of the embedded world, or a part of one.

    Larger pictures never are, also if they are enlarged from one.
    """
    if max(image.shape[:2]) > IMAGE_SIZE:
        return False
    pixels = image.astype(np.float32)
    chroma = pixels[..., ::2] - pixels[..., 1:2]
    steps = [np.abs(np.diff(chroma, axis=axis)).max(-1).ravel() for axis in (0, 1)]
    same = (np.concatenate(steps) <= _SAME_COLOUR).mean()
    grey = pixels.mean(-1)
    beside = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    grain = np.median(np.abs(4 * grey[1:-1, 1:-1] - beside))
    return bool(same >= _LEAST_SAME and _GRAIN[0] <= grain <= _GRAIN[1])

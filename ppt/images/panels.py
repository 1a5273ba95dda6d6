"""Panels for pages and for MLflow: masks, prompt points and similarity maps on small pictures.

Pictures are uint8 [H, W, 3] RGB, masks are bool [H, W] of the same size, and points are (x, y) in
[0, 1].
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ppt.images.drawing import PREDICTION, darken, mark_size, paint_mask, paint_points, resize

SIDE = 208
"""The length of a panel's long side in pixels, where none is given."""

CANDIDATES = ("#1fa8ff", "#ff7f0e", "#b05cff", "#00a88f", "#e84393", "#8d6e63")
"""The colours of an expression's candidates."""

_HEAT = np.array(
    [[13, 8, 60], [110, 20, 120], [215, 60, 60], [252, 160, 30], [252, 255, 164]], np.float64
)


def picture_panel(image: np.ndarray, side: int = SIDE) -> Image.Image:
    """Return the picture with its long side scaled to `side` pixels."""
    return resize(image, side)


def mask_panel(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    colour: str = PREDICTION,
    points: Sequence[float] | np.ndarray = (),
    point_labels: Sequence[int] | np.ndarray = (),
    side: int = SIDE,
) -> Image.Image:
    """Draw a mask and its points over the darkened picture.

    `points` is [P, 2] or x0, y0, x1, y1, ... A positive point is a plus on green, and a negative
    one is a minus on red; many points are drawn smaller than few.
    """
    original = picture_panel(image, side)
    panel = paint_mask(darken(original), mask, colour, original=original)
    return paint_points(panel, points, point_labels, size=mark_size(panel, len(point_labels)))


def candidates_panel(
    image: np.ndarray, masks: Sequence[np.ndarray], colours: Sequence[str], side: int = SIDE
) -> Image.Image:
    """Draw several masks over the darkened picture, each in its own colour."""
    original = picture_panel(image, side)
    panel = darken(original)
    for mask, colour in zip(masks, colours, strict=True):
        panel = paint_mask(panel, mask, colour, original=original)
    return panel


def similarity_panel(image: np.ndarray, similarity: np.ndarray, side: int = SIDE) -> Image.Image:
    """Draw a similarity map, [g, g] in [0, 1], over the grey picture.

    Low similarity is dark, and high similarity is yellow.
    """
    grey = picture_panel(image, side).convert("L").convert("RGB")
    small = Image.fromarray(np.rint(similarity * 255).astype(np.uint8))
    level = np.asarray(small.resize(grey.size, Image.Resampling.BICUBIC), np.float64) / 255
    stops = np.linspace(0, 1, len(_HEAT))
    heat = np.stack([np.interp(level, stops, _HEAT[:, c]) for c in range(3)], axis=-1)
    return Image.blend(grey, Image.fromarray(heat.astype(np.uint8)), 0.6)


def strip(panels: Sequence[Image.Image], caption: str) -> Image.Image:
    """Join panels side by side under a caption into one picture, for use outside the page."""
    gap, top = 6, 24
    width = sum(panel.width + gap for panel in panels) + gap
    sheet = Image.new("RGB", (width, max(p.height for p in panels) + top + gap), "white")
    ImageDraw.Draw(sheet).text((gap, 4), caption, "black", ImageFont.load_default(13))
    x = gap
    for panel in panels:
        sheet.paste(panel, (x, top))
        x += panel.width + gap
    return sheet


def data_uri(panel: Image.Image) -> str:
    """Encode a panel as WebP in a data URI."""
    buffer = io.BytesIO()
    panel.save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

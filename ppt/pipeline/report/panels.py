"""Panels of the page and of MLflow: masks, prompt points, similarity maps on small pictures.

Pictures are uint8 [H, W, 3] RGB, masks bool [H, W] of the same size, points (x, y) in [0, 1].
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ppt.drawing import PREDICTION, darken, paint_mask, paint_points, resize

SIDE = 208
"""Long side of a panel in pixels."""

CANDIDATES = ("#1fa8ff", "#ff7f0e", "#b05cff", "#00a88f", "#e84393", "#8d6e63")

_HEAT = np.array(
    [[13, 8, 60], [110, 20, 120], [215, 60, 60], [252, 160, 30], [252, 255, 164]], np.float64
)


def picture_panel(image: np.ndarray) -> Image.Image:
    """The picture as it is, its long side scaled to `SIDE`."""
    return resize(image, SIDE)


def mask_panel(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    colour: str = PREDICTION,
    points: Sequence[float] = (),
    point_labels: Sequence[int] = (),
) -> Image.Image:
    """A mask over the darkened picture. `points` is x0, y0, x1, y1, ...; green +, red -."""
    original = picture_panel(image)
    panel = paint_mask(darken(original), mask, colour, original=original)
    return paint_points(panel, points, point_labels)


def candidates_panel(
    image: np.ndarray, masks: Sequence[np.ndarray], colours: Sequence[str]
) -> Image.Image:
    """Several masks, each in its own colour."""
    original = picture_panel(image)
    panel = darken(original)
    for mask, colour in zip(masks, colours, strict=True):
        panel = paint_mask(panel, mask, colour, original=original)
    return panel


def similarity_panel(image: np.ndarray, similarity: np.ndarray) -> Image.Image:
    """A similarity map [g, g] in [0, 1] over the grey picture: dark is low, yellow is high."""
    grey = picture_panel(image).convert("L").convert("RGB")
    small = Image.fromarray(np.rint(similarity * 255).astype(np.uint8))
    level = np.asarray(small.resize(grey.size, Image.Resampling.BICUBIC), np.float64) / 255
    stops = np.linspace(0, 1, len(_HEAT))
    heat = np.stack([np.interp(level, stops, _HEAT[:, c]) for c in range(3)], axis=-1)
    return Image.blend(grey, Image.fromarray(heat.astype(np.uint8)), 0.6)


def strip(panels: Sequence[Image.Image], caption: str) -> Image.Image:
    """Panels side by side under a caption: one picture where there is no page to put them on."""
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
    """The panel as WebP inside a URI."""
    buffer = io.BytesIO()
    panel.save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

"""Drawing on pictures: masks, prompt points, similarity maps. Shared by the page and MLflow.

Pictures are uint8 [H, W, 3] RGB, masks bool [H, W] of the same size, points (x, y) in [0, 1].
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

SIDE = 208
"""Long side of a panel in pixels."""

PREDICTION, TRUTH = "#1fa8ff", "#ffb000"
CANDIDATES = ("#1fa8ff", "#ff7f0e", "#b05cff", "#00a88f", "#e84393", "#8d6e63")
POSITIVE, NEGATIVE = "#19a84b", "#e0302f"

_HEAT = np.array(
    [[13, 8, 60], [110, 20, 120], [215, 60, 60], [252, 160, 30], [252, 255, 164]], np.float64
)


def picture_panel(image: np.ndarray) -> Image.Image:
    """The picture as it is, its long side scaled to `SIDE`."""
    picture = Image.fromarray(image)
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def mask_panel(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    colour: str = PREDICTION,
    points: Sequence[float] = (),
    point_labels: Sequence[int] = (),
) -> Image.Image:
    """A mask over the darkened picture. `points` is x0, y0, x1, y1, ...; green +, red -."""
    panel = paint_mask(_darkened(picture_panel(image)), mask, colour, original=picture_panel(image))
    return _paint_points(panel, points, point_labels) if len(points) else panel


def candidates_panel(
    image: np.ndarray, masks: Sequence[np.ndarray], colours: Sequence[str]
) -> Image.Image:
    """Several masks, each in its own colour."""
    original = picture_panel(image)
    panel = _darkened(original)
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


def paint_mask(
    panel: Image.Image, mask: np.ndarray, colour: str, *, original: Image.Image
) -> Image.Image:
    """The mask's inside from the original, tinted, with an outline in full colour."""
    area = Image.fromarray(mask.astype(np.uint8) * 255)
    area = area.resize(panel.size, Image.Resampling.BICUBIC).point(lambda v: 255 * (v > 127))
    solid = Image.new("RGB", panel.size, colour)
    panel = Image.composite(Image.blend(original, solid, 0.35), panel, area)
    outer = area.filter(ImageFilter.MaxFilter(3))
    edge = ImageChops.difference(outer, area.filter(ImageFilter.MinFilter(3)))
    return Image.composite(solid, panel, edge)


def _darkened(panel: Image.Image) -> Image.Image:
    grey = panel.convert("L").convert("RGB")
    return Image.blend(Image.blend(panel, grey, 0.6), Image.new("RGB", panel.size), 0.3)


def _paint_points(
    panel: Image.Image, points: Sequence[float], labels: Sequence[int]
) -> Image.Image:
    panel = panel.copy()
    for (x, y), label in zip(np.reshape(points, (-1, 2)), labels, strict=True):
        mark = _mark(bool(label))
        place = round(x * panel.width - mark.width / 2), round(y * panel.height - mark.height / 2)
        panel.paste(mark, place, mark)
    return panel


@functools.cache
def _mark(positive: bool) -> Image.Image:
    """A disc with a plus or a minus, drawn large and scaled down to smooth its edges."""
    scale, side = 4, 15
    mark = Image.new("RGBA", (side * scale, side * scale))
    draw = ImageDraw.Draw(mark)
    end, middle, arm = side * scale - 1, side * scale / 2, 3.5 * scale
    colour = POSITIVE if positive else NEGATIVE
    draw.ellipse((0, 0, end, end), fill=colour, outline="white", width=scale + 1)
    draw.line((middle - arm, middle, middle + arm, middle), fill="white", width=2 * scale)
    if positive:
        draw.line((middle, middle - arm, middle, middle + arm), fill="white", width=2 * scale)
    return mark.resize((side, side), Image.Resampling.LANCZOS)

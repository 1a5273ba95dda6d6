"""Drawing of masks, prompt points and captions on pictures, for reports, MLflow and predictions.

Pictures are uint8 [H, W, 3] RGB, masks bool [H, W] of the same size, points (x, y) in [0, 1].
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

PREDICTION, TRUTH = "#1fa8ff", "#ffb000"
POSITIVE, NEGATIVE = "#19a84b", "#e0302f"

MARK, SMALLEST_MARK = 15, 5
"""The default diameter in pixels of a point's mark, and the least one of `mark_size`."""

_OVERLAY_SIDE = 640  # smaller pictures are enlarged, so that the marks do not cover the objects


def resize(image: np.ndarray, side: int) -> Image.Image:
    """Scale a picture so that its long side has `side` pixels."""
    picture = Image.fromarray(image)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    points: Sequence[float] | np.ndarray,
    point_labels: Sequence[int] | np.ndarray,
    caption: str,
    note: str,
) -> Image.Image:
    """Draw a mask and its points on the darkened picture, with a caption and a note below it.

    The caption is on the left, the note on the right. The picture is enlarged if its long side has
    fewer than 640 pixels.
    """
    side = max(_OVERLAY_SIDE, *image.shape[:2])
    original = resize(image, side)
    line = max(1, round(side / _OVERLAY_SIDE))
    panel = paint_mask(darken(original), mask, PREDICTION, original=original, line=line)
    mark = max(MARK, round((panel.width * panel.height) ** 0.5 / 34))
    panel = paint_points(panel, points, point_labels, size=mark)
    return _with_caption(panel, caption, note, size=max(14, round(panel.width / 32)))


def darken(panel: Image.Image) -> Image.Image:
    """Make a panel darker and less colourful, so that drawings on it stand out."""
    grey = panel.convert("L").convert("RGB")
    return Image.blend(Image.blend(panel, grey, 0.6), Image.new("RGB", panel.size), 0.3)


def paint_mask(
    panel: Image.Image, mask: np.ndarray, colour: str, *, original: Image.Image, line: int = 1
) -> Image.Image:
    """Paint a mask on a panel.

    Args:
        panel: the picture on which to paint; it is not changed.
        mask: bool [H, W].
        colour: the colour of the outline and of the tint.
        original: the picture, at the panel's size, that is shown tinted inside the mask.
        line: the width of the outline on each side of the mask's border, in pixels.

    Returns:
        A new picture of the panel's size, to which the mask is scaled.
    """
    area = _area(mask, panel.size)
    solid = Image.new("RGB", panel.size, colour)
    panel = Image.composite(Image.blend(original, solid, 0.35), panel, area)
    outer = area.filter(ImageFilter.MaxFilter(1 + 2 * line))
    edge = ImageChops.difference(outer, area.filter(ImageFilter.MinFilter(1 + 2 * line)))
    return Image.composite(solid, panel, edge)


def _area(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Scale a mask to a panel's size, in 0 to 255, with its border smoothed."""
    area = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)
    scale = max(1.0, size[0] / mask.shape[1])
    if scale > 1:
        area = area.filter(ImageFilter.GaussianBlur(0.4 * scale))  # keeps single pixels visible
    return area.point(lambda v: round(min(255, max(0, 127.5 + 2 * scale * (v - 127.5)))))


def mark_size(panel: Image.Image, number: int) -> int:
    """Return the diameter in pixels of each of some marks on a small panel.

    It is `MARK`, or less if the marks would cover more than a thirty-second of the panel.
    """
    room = panel.width * panel.height / 32
    fitting = round((4 * room / (math.pi * max(number, 1))) ** 0.5)
    return min(MARK, max(SMALLEST_MARK, fitting))


def paint_points(
    panel: Image.Image,
    points: Sequence[float] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    size: int = MARK,
) -> Image.Image:
    """Draw positive points as green discs with a plus, and negative ones as red discs with a minus.

    Args:
        panel: the picture on which to draw; it is not changed.
        points: P points, as [P, 2] or as x0, y0, x1, y1, ...
        labels: P labels, 1 for positive and 0 for negative.
        size: the diameter of a disc in pixels.
    """
    panel = panel.copy()
    for (x, y), label in zip(np.reshape(points, (-1, 2)), labels, strict=True):
        mark = _mark(bool(label), size)
        place = round(x * panel.width - mark.width / 2), round(y * panel.height - mark.height / 2)
        panel.paste(mark, place, mark)
    return panel


@functools.cache
def _mark(positive: bool, size: int) -> Image.Image:
    """Draw a disc with a plus or a minus; it is scaled down from four times its size."""
    side = 4 * size
    mark = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(mark)
    end, middle, arm, width = side - 1, side / 2, 0.23 * side, round(0.13 * side)
    colour = POSITIVE if positive else NEGATIVE
    draw.ellipse((0, 0, end, end), fill=colour, outline="white", width=round(0.08 * side))
    draw.line((middle - arm, middle, middle + arm, middle), fill="white", width=width)
    if positive:
        draw.line((middle, middle - arm, middle, middle + arm), fill="white", width=width)
    return mark.resize((size, size), Image.Resampling.LANCZOS)


def _with_caption(panel: Image.Image, caption: str, note: str, *, size: int) -> Image.Image:
    """Put a panel above a white band with the caption, wrapped into lines, and the note."""
    font = ImageFont.load_default(size)
    space, gap, step = round(0.6 * size), round(0.4 * size), round(1.25 * size)
    width = max(panel.width, 16 * size)  # leaves room for words under a very narrow picture
    room = width - 2 * space
    per_line = max(8, int(room / (0.5 * size)))  # a character is about half an em wide
    lines = textwrap.wrap(caption, per_line) or [""]
    beside = font.getlength(lines[-1]) + font.getlength(note) + size <= room
    rows = len(lines) + (not beside)
    sheet = Image.new("RGB", (width, panel.height + rows * step + 2 * gap), "white")
    sheet.paste(panel, ((width - panel.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((space, panel.height + gap + number * step), line, "#111111", font)
    place = (width - space, panel.height + gap + (rows - 1) * step)
    draw.text(place, note, "#5a6472", font, anchor="ra")
    return sheet

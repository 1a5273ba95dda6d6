"""Encoded pictures to pixels, and back: everything that may be wrong with a picture is said here.

Pixels are uint8 [height, width, 3] RGB, upright (EXIF orientation applied).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MIN_SIDE = 8
"""Shortest side in pixels of a picture in which anything can be referred to (our choice)."""

_LOSSLESS_SIDE = 256  # up to here a picture is stored as PNG, above as JPEG


class UnreadablePicture(ValueError):
    """A picture that cannot be used; the message says what is wrong with it."""


def check_picture(data: bytes) -> np.ndarray:
    """Decode JPEG, PNG ... bytes to uint8 [H, W, 3] RGB.

    Grey, palette, 16-bit and CMYK pictures become RGB, transparency lies on white. Raises
    `UnreadablePicture` for bytes that are no picture, a truncated file, a side below `MIN_SIDE`.
    """
    if not data:
        raise UnreadablePicture("picture is an empty file")
    try:
        picture = Image.open(io.BytesIO(data))
        width, height = picture.size
        if min(width, height) < MIN_SIDE:
            raise UnreadablePicture(
                f"picture is {width}x{height}, needs at least {MIN_SIDE}x{MIN_SIDE}"
            )
        picture.load()
        return np.asarray(_to_rgb(ImageOps.exif_transpose(picture)))
    except UnidentifiedImageError:
        raise UnreadablePicture(f"no picture format begins like these {len(data)} bytes") from None
    except Image.DecompressionBombError as error:
        raise UnreadablePicture(f"picture is too large: {error}") from None
    except (OSError, SyntaxError, EOFError, IndexError) as error:
        raise UnreadablePicture(f"picture cannot be decoded: {error}") from None


def picture_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the upright picture, after the checks of `check_picture`."""
    return check_picture(data).shape[:2]


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits a pixel
        grey = np.asarray(picture, dtype=np.float32)
        scale = 255 / 65535 if grey.max(initial=0) > 255 else 1
        return Image.fromarray((grey * scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def encode_picture(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> PNG up to 256 pixels a side, else JPEG of quality 95."""
    stream = io.BytesIO()
    if max(pixels.shape[:2]) <= _LOSSLESS_SIDE:
        Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    else:
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def flip_picture(pixels: np.ndarray) -> bytes:
    """The picture mirrored left to right, encoded."""
    return encode_picture(np.ascontiguousarray(pixels[:, ::-1]))

"""Pictures to pixels, and back: everything that may be wrong with a picture is said here.

Pixels are uint8 [height, width, 3] RGB, upright (EXIF orientation applied).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    with _decoding("picture", data) as picture:
        return _check(picture)


def check_mask(data: bytes) -> np.ndarray:
    """Decode a mask, PNG or another lossless format, to bool [H, W]: True where it is not black.

    Transparent pixels are False. Raises `UnreadablePicture` as `check_picture` does, and for JPEG,
    whose blurred edges are nowhere black.
    """
    with _decoding("mask", data) as picture:
        if picture.format == "JPEG":
            raise UnreadablePicture("mask is a JPEG, which blurs its edge: save it as PNG")
        if picture.mode in ("1", "L", "F") or picture.mode.startswith("I"):
            return np.asarray(picture) != 0
        pixels = np.asarray(picture.convert("RGBA"))
        return pixels[..., :3].any(-1) & (pixels[..., 3] > 0)


@contextmanager
def _decoding(what: str, data: bytes | Image.Image) -> Iterator[Image.Image]:
    """The picture of some bytes; what fails within is an `UnreadablePicture`."""
    if data == b"":
        raise UnreadablePicture(f"{what} is an empty file")
    try:
        yield data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise UnreadablePicture(f"{what} has no known picture format") from None
    except Image.DecompressionBombError as error:
        raise UnreadablePicture(f"{what} is too large: {error}") from None
    except UnreadablePicture:
        raise
    except (OSError, SyntaxError, EOFError, IndexError, ValueError) as error:
        raise UnreadablePicture(f"{what} cannot be decoded: {error}") from None


def read_file(folder: Path, name: str, what: str = "picture") -> bytes:
    """The file's bytes as they are; raises `UnreadablePicture` if there is none to be read."""
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise UnreadablePicture(f"{what} {name} is missing from {folder}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UnreadablePicture(f"{what} {name} cannot be read: {error}") from None


def num_bytes(path: Path) -> int | None:
    """A picture's size on disk, None where there is none: what fingerprints take for its content.

    Hashing RefCOCO's 3 GB of pictures at each command would cost more than it finds.
    """
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:  # a name too long, a folder that may not be entered
        return None


def read_picture(picture: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """A path, a PIL image or an array to uint8 [H, W, 3] RGB, as `check_picture` does for bytes.

    Arrays are [H, W] or [H, W, 1] grey, [H, W, 3] RGB or [H, W, 4] RGBA, of uint8, of uint16
    (full scale 65535), of bool, or of floats in [0, 1]. Raises `UnreadablePicture`.
    """
    if isinstance(picture, np.ndarray):
        return _check(_from_array(picture))
    if isinstance(picture, Image.Image):
        with _decoding("picture", picture) as opened:  # PIL decodes when asked to
            return _check(opened)
    try:
        data = Path(picture).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UnreadablePicture(f"cannot read {str(picture)!r}: {why.lower()}") from None
    return check_picture(data)


def _check(picture: Image.Image) -> np.ndarray:
    width, height = picture.size
    if min(width, height) < MIN_SIDE:
        raise UnreadablePicture(
            f"picture is {width}x{height}, needs at least {MIN_SIDE}x{MIN_SIDE}"
        )
    picture.load()
    return np.asarray(_to_rgb(ImageOps.exif_transpose(picture)))


def _from_array(array: np.ndarray) -> Image.Image:
    shape = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise UnreadablePicture(f"array must be [H, W], [H, W, 3] or [H, W, 4], got {shape}")
    if array.dtype.kind == "f":
        if not ((array >= 0) & (array <= 1)).all():  # also for what is not a number
            raise UnreadablePicture(f"an array of floats must lie in [0, 1], got {shape} beyond it")
        array = np.rint(array * 255)
    elif array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = np.rint(array * np.float32(255 / 65535))
    elif array.dtype != np.uint8:
        raise UnreadablePicture(f"array must be uint8, uint16, bool or floats, got {shape}")
    return Image.fromarray(np.ascontiguousarray(array, np.uint8))


def picture_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the upright picture, after the checks of `check_picture`."""
    return check_picture(data).shape[:2]


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits a pixel
        grey = np.asarray(picture, dtype=np.float32)
        # "I;16..." says its full scale; "I" and "F" hold what was put in, and do not.
        deep = picture.mode.startswith("I;16") or grey.max(initial=0) > 255
        scale = 255 / 65535 if deep else 1
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

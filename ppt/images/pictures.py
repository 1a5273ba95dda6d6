"""Decoding, checking and encoding of pictures.

Pixels are uint8 [height, width, 3] RGB, upright (the EXIF orientation is applied).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MIN_SIDE = 8
"""The least width and height in pixels of a picture that is accepted (our choice)."""

_LOSSLESS_SIDE = 256  # pictures with a longer side are stored as JPEG, all others as PNG


class UnreadablePicture(ValueError):
    """The error of a picture that cannot be used; the message says what is wrong with it."""


def check_picture(data: bytes) -> np.ndarray:
    """Decode the bytes of a JPEG, PNG or other picture file to uint8 [H, W, 3] RGB.

    Grey, palette, 16-bit and CMYK pictures are converted to RGB. Transparent pictures are put on a
    white background.

    Raises:
        UnreadablePicture: if the bytes are not a picture, if the file is truncated, or if a side is
            shorter than `MIN_SIDE`.
    """
    with _decoding("picture", data) as picture:
        return _check(picture)


def check_mask(data: bytes) -> np.ndarray:
    """Decode the bytes of a mask file to bool [H, W], which is True where the mask is not black.

    Transparent pixels are False.

    Raises:
        UnreadablePicture: if the bytes are not a picture, if the file is truncated, or if it is a
            JPEG, whose compression changes black pixels near edges.
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
    """Open a picture, and turn decoding errors within the context into `UnreadablePicture`."""
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
    """Return the bytes of a file. Raises `UnreadablePicture` if the file cannot be read."""
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise UnreadablePicture(f"{what} {name} is missing from {folder}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UnreadablePicture(f"{what} {name} cannot be read: {error}") from None


def num_bytes(path: Path) -> int | None:
    """Return a file's size in bytes, or None if there is no such file.

    Fingerprints of data use the size in place of the content, because hashing all pictures at every
    command would take too long (our choice).
    """
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:  # for example, the name is too long or the folder may not be entered
        return None


def read_picture(picture: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """Convert a path, a PIL image or an array to uint8 [H, W, 3] RGB.

    Args:
        picture: an array is [H, W] or [H, W, 1] for grey, [H, W, 3] for RGB or [H, W, 4] for RGBA.
            Its values are uint8, uint16 with a full scale of 65535, bool, or floats in [0, 1].

    Raises:
        UnreadablePicture: if the picture cannot be read or used; see `check_picture`.
    """
    if isinstance(picture, np.ndarray):
        return _check(_from_array(picture))
    if isinstance(picture, Image.Image):
        with _decoding("picture", picture) as opened:  # PIL may not have decoded it yet
            return _check(opened)
    try:
        data = Path(picture).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UnreadablePicture(f"cannot read {str(picture)!r}: {why.lower()}") from None
    return check_picture(data)


def _check(picture: Image.Image) -> np.ndarray:
    """Return the upright RGB pixels of a picture, after checking its size."""
    width, height = picture.size
    if min(width, height) < MIN_SIDE:
        raise UnreadablePicture(
            f"picture is {width}x{height}, needs at least {MIN_SIDE}x{MIN_SIDE}"
        )
    picture.load()
    return np.asarray(_to_rgb(ImageOps.exif_transpose(picture)))


def _from_array(array: np.ndarray) -> Image.Image:
    """Convert an array, as `read_picture` describes it, to a PIL image."""
    shape = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise UnreadablePicture(f"array must be [H, W], [H, W, 3] or [H, W, 4], got {shape}")
    if array.dtype.kind == "f":
        if not ((array >= 0) & (array <= 1)).all():  # rejects NaN as well
            raise UnreadablePicture(f"an array of floats must lie in [0, 1], got {shape} beyond it")
        array = np.rint(array * 255)
    elif array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = np.rint(array * np.float32(255 / 65535))
    elif array.dtype != np.uint8:
        raise UnreadablePicture(f"array must be uint8, uint16, bool or floats, got {shape}")
    return Image.fromarray(np.ascontiguousarray(array, np.uint8))


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB."""
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits for each pixel
        grey = np.asarray(picture, dtype=np.float32)
        # Modes "I;16..." have a full scale of 65535. Modes "I" and "F" may hold 8 or 16 bits.
        deep = picture.mode.startswith("I;16") or grey.max(initial=0) > 255
        scale = 255 / 65535 if deep else 1
        return Image.fromarray((grey * scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def encode_picture(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as PNG up to 256 pixels a side, and as JPEG of quality 95 above."""
    stream = io.BytesIO()
    if max(pixels.shape[:2]) <= _LOSSLESS_SIDE:
        Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    else:
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def flip_picture(pixels: np.ndarray) -> bytes:
    """Mirror a picture, uint8 [H, W, 3], left to right and encode it."""
    return encode_picture(np.ascontiguousarray(pixels[:, ::-1]))

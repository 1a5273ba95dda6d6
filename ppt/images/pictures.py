"""Reading, decoding, checking and encoding of pictures.

Pixels are uint8 [height, width, 3] RGB, upright (the EXIF orientation is applied).
"""

from __future__ import annotations

import io
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

MIN_SIDE = 8
"""The least width and height in pixels of a picture that is accepted (our choice)."""

MAX_RATIO = 20
"""The largest ratio of the longer to the shorter side that is accepted (our choice)."""

MAX_PIXELS = 50_000_000
"""The most pixels of a picture that is accepted (our choice)."""

MAX_BYTES = 2**27
"""The most bytes of a picture's file that is read (our choice)."""

FORMATS = (
    *("AVIF", "BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF"),
    "WEBP",
)
"""The formats that are read, by Pillow's names. Pillow gives EPS to Ghostscript, which runs it."""

_LOSSLESS_SIDE = 256  # pictures with a longer side are stored as JPEG, all others as PNG


class UnreadablePicture(ValueError):
    """The error of a picture that cannot be used; the message says what is wrong with it."""


class UprightPicture(NamedTuple):
    """A decoded picture, and the EXIF orientation by which it was turned."""

    pixels: np.ndarray  # uint8 [H, W, 3] RGB, upright
    orientation: int  # 1 to 8; 1 if the file gives none


def check_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode the bytes of a picture file to uint8 [H, W, 3] RGB, as `decode_picture` does."""
    return decode_picture(data, max_pixels).pixels


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> UprightPicture:
    """Decode the bytes of a JPEG, PNG or other picture file, and turn the picture upright.

    Grey, palette, 16-bit and CMYK pictures are converted to RGB. Transparent pictures are put on a
    white background. An orientation that cannot be read is none, as for other programs.

    Raises:
        UnreadablePicture: if the bytes are not a picture, if the file is truncated, or if its size
            is beyond `MIN_SIDE`, `max_pixels` or `MAX_RATIO`.
    """
    with _decoding("picture", data) as picture:
        return _check(picture, max_pixels)


def check_mask(data: bytes) -> np.ndarray:
    """Decode the bytes of a mask file to bool [H, W], which is True where the mask is not black.

    Transparent pixels are False. The EXIF orientation is applied.

    Raises:
        UnreadablePicture: if the bytes are not a picture, if the file is truncated, if its size is
            none that a picture may have, or if it is a JPEG, whose compression changes black
            pixels near edges.
    """
    with _decoding("mask", data) as picture:
        if picture.format == "JPEG":
            raise UnreadablePicture("mask is a JPEG, which blurs its edge: save it as PNG")
        _check_size("mask", picture.size)
        picture.load()
        if picture.mode in ("1", "L", "F") or picture.mode.startswith("I"):
            mask = np.asarray(picture) != 0
        else:
            pixels = np.asarray(picture.convert("RGBA"))
            mask = pixels[..., :3].any(-1) & (pixels[..., 3] > 0)
        return turn_upright(mask, _orientation(picture))


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an array, [H, W] or [H, W, C], as an EXIF orientation of 1 to 8 says."""
    if swaps_sides(orientation):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def swaps_sides(orientation: int) -> bool:
    """Return whether an EXIF orientation makes the stored width the height of the picture."""
    return orientation >= 5


@contextmanager
def _decoding(what: str, data: bytes | Image.Image) -> Iterator[Image.Image]:
    """Open a picture, and turn decoding errors within the context into `UnreadablePicture`."""
    if data == b"":
        raise UnreadablePicture(f"{what} is an empty file")
    try:
        yield data if isinstance(data, Image.Image) else _open(data)
    except UnidentifiedImageError:
        raise UnreadablePicture(f"{what} has no known picture format") from None
    except Image.DecompressionBombError as error:
        raise UnreadablePicture(f"{what} is too large: {error}") from None
    except UnreadablePicture:
        raise
    except Exception as error:  # a broken file raises what its decoder happens to stumble over
        reason = str(error) or type(error).__name__
        raise UnreadablePicture(f"{what} cannot be decoded: {reason}") from None


def _open(data: bytes) -> Image.Image:
    """Open a picture of `FORMATS`, as far as this Pillow has them."""
    Image.init()
    return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])


def format_of(data: bytes) -> str | None:
    """Return the format of a picture's file, of `FORMATS`; None if the bytes are no picture."""
    try:
        with _decoding("picture", data) as picture:
            return picture.format
    except UnreadablePicture:
        return None


def read_file(folder: Path, name: str, what: str = "picture") -> bytes:
    """Return the bytes of a file.

    Raises:
        UnreadablePicture: if there is no such file, if it is no regular file, if it has more than
            `MAX_BYTES`, or if it cannot be read.
    """
    try:
        return _read_regular(folder / name)
    except FileNotFoundError:
        raise UnreadablePicture(f"{what} {name} is missing from {printable(folder)}") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UnreadablePicture(f"{what} {name} cannot be read: {error}") from None


def _read_regular(path: Path) -> bytes:
    """Read a regular file; a pipe or a device could block for ever. Raises OSError, ValueError."""
    path = existing_path(path)
    state = path.stat()
    if not stat.S_ISDIR(state.st_mode):  # reading a folder raises an error that says so
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("it is no regular file")
        if state.st_size > MAX_BYTES:
            raise ValueError(f"it has {state.st_size:,} bytes, more than {MAX_BYTES:,}")
    return path.read_bytes()


def existing_path(path: Path) -> Path:
    """Return the path of the file that is meant, whose name may be composed in another way.

    An accented letter is one character in Unicode's form NFC and two in NFD, which macOS writes.
    Where a part of the path does not exist as it is given, its other form is taken if that exists.
    """
    if str(path).isascii() or path.exists():
        return path
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found = next((found / form for form in forms if (found / form).exists()), found / part)
    return found


def printable(path: str | Path) -> str:
    """Return a path as text that can be stored; bytes that are not UTF-8 become \\xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def num_bytes(path: Path) -> int | None:
    """Return a file's size in bytes, or None if there is no such regular file.

    Fingerprints of data use the size in place of the content, because hashing all pictures at every
    command would take too long (our choice).
    """
    try:
        path = existing_path(path)
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # for example, the name is too long, or no file can have it
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
        return _check(_from_array(picture)).pixels
    if isinstance(picture, Image.Image):
        with _decoding("picture", picture) as opened:  # PIL may not have decoded it yet
            return _check(opened).pixels
    try:
        data = _read_regular(Path(picture))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UnreadablePicture(f"cannot read {str(picture)!r}: {why.lower()}") from None
    try:
        return check_picture(data)
    except UnreadablePicture as error:
        raise UnreadablePicture(f"{str(picture)!r}: {error}") from None


def _check(picture: Image.Image, max_pixels: int = MAX_PIXELS) -> UprightPicture:
    """Check the size of a picture before its pixels are decoded, and turn it upright."""
    _check_size("picture", picture.size, max_pixels)
    given = _orientation(picture)
    picture.load()
    left = _orientation(picture)  # Pillow itself turns a TIFF when it loads it
    return UprightPicture(turn_upright(np.asarray(_to_rgb(picture)), left), given)


def _check_size(what: str, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Raise `UnreadablePicture` if no picture of this (width, height) is accepted."""
    width, height = size
    told = f"{what} is {width}x{height}"
    if min(size) < MIN_SIDE:
        raise UnreadablePicture(f"{told}, needs at least {MIN_SIDE}x{MIN_SIDE}")
    if width * height > max_pixels:
        raise UnreadablePicture(f"{told}, may have at most {max_pixels:,} pixels")
    if max(size) > MAX_RATIO * min(size):
        raise UnreadablePicture(f"{told}, may be at most {MAX_RATIO} times as long as wide")


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation of a picture, 1 to 8; 1 where there is none to be read."""
    try:
        value: Any = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF data raise what their decoder happens to stumble over
        return 1
    return int(value) if value in range(1, 9) else 1


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

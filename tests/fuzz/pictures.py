"""The files of pictures and masks, in many formats."""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from PIL import Image, ImageOps

from fuzz.boxes import encoded, photos
from fuzz.cases import Input, Kind, Outcome, clear
from fuzz.mutate import mutated
from ppt.config import ClipConfig, SamConfig
from ppt.images.pictures import (
    MAX_PIXELS,
    MAX_RATIO,
    MIN_SIDE,
    UnreadablePicture,
    check_mask,
    decode_picture,
    encode_picture,
)
from ppt.models.build import build_image_text_encoder, build_segmenter

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n0 0 moveto\n"
"""A program for Ghostscript, to which Pillow would give it."""


@functools.cache
def _bases() -> tuple[bytes, ...]:
    """Pictures in the formats and modes that Pillow writes, and real photographs."""
    ramp = np.linspace(0, 255, 48 * 36 * 4).astype(np.uint8).reshape(36, 48, 4)
    colour = Image.fromarray(ramp)
    found = []
    for mode in ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr"):
        image = Image.fromarray(ramp[..., 0].astype(np.uint16) * 200) if mode == "I;16" else None
        image = image or colour.convert("L" if mode in "IF" else "RGB").convert(mode)
        for form in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "PPM", "TGA", "ICO", "JPEG2000"):
            try:
                found.append(encoded(image, form))
            except (OSError, ValueError, KeyError):  # the format has no such mode
                continue
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        found.append(encoded(colour.convert("RGB"), "TIFF", compression=compression))
    small = colour.convert("RGB")
    found.append(encoded(small, "JPEG", progressive=True))
    found.append(encoded(small, "GIF", save_all=True, append_images=[small.rotate(90)]))
    found.append(encoded(small, "PNG", save_all=True, append_images=[small.rotate(90)]))
    return (*found, _EPS, *photos())


@st.composite
def _exifs(draw: DrawFn) -> bytes:
    """A JPEG whose EXIF has tags of any type."""
    tags = st.sampled_from([0x0112, 0x011A, 0x010F, 0x0128, 0x0213, 0x8769, 0x8825, 0x9000, 0x100])
    entries = draw(
        st.lists(
            st.tuples(
                tags | st.integers(0, 65535),
                st.integers(0, 13),
                st.sampled_from([0, 1, 2, 4, 2**31, 2**32 - 1]),
                st.binary(min_size=4, max_size=4)
                | st.integers(0, 9).map(lambda n: bytes([n, 0, 0, 0])),
            ),
            max_size=4,
        )
    )
    block = b"II*\0" + struct.pack("<LH", 8, len(entries))
    block += b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries)
    block = draw(st.just(b"Exif\0\0" + block + b"\0\0\0\0") | st.binary(max_size=20))
    image = Image.new("RGB", (24, 16), (200, 30, 30))
    return encoded(image, "JPEG", exif=block)


@st.composite
def _claims(draw: DrawFn) -> bytes:
    """A PNG whose header claims any size, with as few rows as the picture of a moment holds."""
    sides = st.sampled_from([0, 1, 7, 8, 9, 160, 161, 5_000, 20_000, 70_000, 2**31 - 1, 2**32 - 1])
    depth, kind = draw(st.sampled_from([(8, 0), (8, 2), (16, 6), (1, 0), (8, 3), (5, 9)]))
    header = struct.pack(">LLBBBBB", draw(sides), draw(sides), depth, kind, 0, 0, 0)
    rows = zlib.compress(b"\0" * draw(st.sampled_from([0, 10, 2_000, 400_000, 30_000_000])))
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    if draw(st.booleans()):
        chunks.insert(1, (b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 20_000_000)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))
        for name, data in chunks
    )


def _files() -> st.SearchStrategy[Input]:
    changed = mutated(_bases())
    data = st.one_of(changed, changed, changed, st.sampled_from(_bases()), _exifs(), _claims())
    return data.map(lambda content: Input({"picture": content}))


@functools.cache
def _nets() -> tuple[Any, Any]:
    return build_image_text_encoder(ClipConfig()), build_segmenter(SamConfig())


def _check(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    data = (folder / "picture").read_bytes()
    _check_mask(data)
    try:
        pixels, orientation = decode_picture(data)
    except UnreadablePicture as error:
        clear(error)
        return "quarantined"
    height, width, channels = pixels.shape
    assert pixels.dtype == np.uint8 and channels == 3 and orientation in range(1, 9)
    assert min(height, width) >= MIN_SIDE and height * width <= MAX_PIXELS
    assert max(height, width) <= MAX_RATIO * min(height, width)
    wanted = _read_by_pillow(data)
    if wanted is not None:
        assert np.array_equal(pixels, wanted), "other pixels than Pillow reads"
    again = decode_picture(encode_picture(pixels)).pixels
    assert again.shape == pixels.shape
    clip, sam = _nets()  # what prepare accepts, encode must be able to take
    clip.preprocess(pixels)
    sam.preprocess(pixels)
    return "right"


def _read_by_pillow(data: bytes) -> np.ndarray | None:
    """Return the pixels as Pillow reads and turns them; None where it says nothing of worth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.mode not in ("RGB", "L") or "transparency" in image.info:
                    return None
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except Exception:  # its own turning fails where ppt reads on
            return None


def _check_mask(data: bytes) -> None:
    try:
        mask = check_mask(data)
    except UnreadablePicture as error:
        clear(error)
    else:
        assert mask.dtype == bool and mask.ndim == 2


KINDS = {"picture": Kind(lambda run: _files(), _check, 3)}

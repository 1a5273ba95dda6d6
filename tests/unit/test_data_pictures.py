"""Every kind of picture people have on disk, and every way it can be broken."""

import io

import numpy as np
import pytest
from PIL import Image

from ppt.images.pictures import (
    UnreadablePicture,
    check_mask,
    check_picture,
    encode_picture,
    flip_picture,
    read_picture,
)


def encoded(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


@pytest.fixture
def pixels() -> np.ndarray:
    ramp = np.linspace(0, 255, 24, dtype=np.uint8)
    return np.stack([np.tile(ramp, (16, 1)), np.full((16, 24), 90, np.uint8)] * 2, -1)[..., :3]


def test_jpeg_of_colours(pixels):
    seen = check_picture(encoded(Image.fromarray(pixels), "JPEG", quality=95))
    assert seen.shape == (16, 24, 3) and seen.dtype == np.uint8
    assert np.abs(seen.astype(int) - pixels).mean() < 4


def test_upright_by_exif(pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    data = encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)
    seen = check_picture(data)
    assert seen.shape == (24, 16, 3)
    assert np.abs(seen.astype(int) - np.rot90(pixels, -1)).mean() < 4


def test_grey_palette_alpha_cmyk_and_16_bits(pixels):
    grey = pixels[..., 0]
    expected = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(check_picture(encoded(Image.fromarray(grey))), expected)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.abs(check_picture(encoded(deep)).astype(int) - expected).max() <= 1
    dark = Image.fromarray(grey.astype(np.uint16))  # its brightest value is 255 of 65535
    for format in ("PNG", "TIFF"):
        assert check_picture(encoded(dark, format)).max() <= 1
    np.testing.assert_array_equal(check_picture(encoded(dark.convert("I"), "TIFF")), expected)
    palette = Image.fromarray(pixels).convert("P")
    assert check_picture(encoded(palette)).shape == (16, 24, 3)
    cmyk = encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(check_picture(cmyk).astype(int) - pixels).mean() < 6
    see_through = Image.fromarray(np.dstack([pixels, np.zeros((16, 24), np.uint8)]))
    assert (check_picture(encoded(see_through)) == 255).all()


def test_a_truncated_jpeg_is_unreadable(pixels):
    data = encoded(Image.fromarray(np.tile(pixels, (20, 20, 1))), "JPEG")
    with pytest.raises(UnreadablePicture, match="truncated"):
        check_picture(data[: len(data) // 2])


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_a_tiny_picture_is_unreadable(size):
    with pytest.raises(UnreadablePicture, match=f"{size[0]}x{size[1]}, needs at least 8x8"):
        check_picture(encoded(Image.new("RGB", size)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"not a picture", "no known picture format"),
        (b"\xff\xd8\xff\xe0" * 9, "picture"),
    ],
)
def test_other_bytes_are_unreadable(data, message):
    with pytest.raises(UnreadablePicture, match=message):
        check_picture(data)


@pytest.mark.parametrize("check", [check_picture, check_mask])
def test_a_png_with_a_broken_header_is_unreadable(pixels, check):
    data = bytearray(encoded(Image.fromarray(pixels)))
    data[11] = 5  # bytes in the header's chunk
    with pytest.raises(UnreadablePicture, match="cannot be decoded|no known picture format"):
        check(bytes(data))


def test_small_pictures_are_stored_losslessly_and_large_ones_as_jpeg(pixels):
    np.testing.assert_array_equal(check_picture(encode_picture(pixels)), pixels)
    large = np.tile(pixels, (20, 20, 1))
    data = encode_picture(large)
    assert data[:2] == b"\xff\xd8"
    assert np.abs(check_picture(data).astype(int) - large).mean() < 4


def test_flip(pixels):
    np.testing.assert_array_equal(check_picture(flip_picture(pixels)), pixels[:, ::-1])


def test_arrays_of_every_kind_are_the_same_picture(pixels):
    np.testing.assert_array_equal(read_picture(pixels), pixels)
    np.testing.assert_array_equal(read_picture(pixels / 255), pixels)
    np.testing.assert_array_equal(read_picture(pixels.astype(np.uint16) * 257), pixels)
    grey = pixels[..., 0]
    for kind in (grey, grey[..., None]):
        np.testing.assert_array_equal(read_picture(kind), np.repeat(grey[..., None], 3, -1))
    see_through = np.dstack([pixels, np.zeros((16, 24), np.uint8)])
    assert (read_picture(see_through) == 255).all()
    assert set(np.unique(read_picture(grey > 90)).tolist()) == {0, 255}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 16, 24), np.uint8), r"\[H, W, 3\].*uint8 \[3, 16, 24\]"),
        (np.zeros((16, 24, 3), np.int64), r"must be uint8.*int64 \[16, 24, 3\]"),
        (np.full((16, 24, 3), 128.0), r"in \[0, 1\]"),
        (np.full((16, 24), np.nan), r"in \[0, 1\]"),
        (np.zeros(7, np.uint8), r"uint8 \[7\]"),
        (np.zeros((7, 9), np.uint8), "9x7, needs at least"),
    ],
)
def test_an_array_that_is_no_picture(array, message):
    with pytest.raises(UnreadablePicture, match=message):
        read_picture(array)


def test_a_pil_picture_is_read_upright_and_whole(pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.tile(pixels, (20, 20, 1))), "JPEG", exif=exif)
    np.testing.assert_array_equal(read_picture(Image.open(io.BytesIO(data))), check_picture(data))
    with pytest.raises(UnreadablePicture, match="truncated"):
        read_picture(Image.open(io.BytesIO(data[: len(data) // 2])))

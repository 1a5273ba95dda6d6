"""Every kind of picture people have on disk, and every way it can be broken."""

import contextlib
import io
import os
import struct
import unicodedata

import numpy as np
import pytest
from PIL import BmpImagePlugin, EpsImagePlugin, Image, ImageOps

from ppt.images import pictures
from ppt.images.pictures import (
    MAX_BYTES,
    UnreadablePicture,
    check_mask,
    check_picture,
    decode_picture,
    encode_picture,
    flip_picture,
    num_bytes,
    read_file,
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_every_orientation_as_pillow_turns_it(pixels, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels), format, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    picture = decode_picture(data)
    assert picture.orientation == orientation
    np.testing.assert_array_equal(picture.pixels, expected)
    assert expected.shape[:2] == ((24, 16) if orientation >= 5 else (16, 24))
    np.testing.assert_array_equal(check_mask(data), expected.any(-1))


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data with tags that no camera writes: (tag, type, count, the value's 4 bytes)."""
    tags = b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries)) + tags + bytes(4)


TURNED = (0x0112, 3, 1, b"\6\0\0\0")


@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (exif_of(TURNED, (0x0128, 2, 4, b"in\0\0")), (24, 16)),  # the unit as text
        (exif_of(TURNED, (0x011A, 3, 2, b"\x48\0\x48\0")), (24, 16)),  # a resolution of two numbers
        (exif_of(TURNED, (0x010F, 3, 1, b"\x48\0\0\0")), (24, 16)),  # the maker as a number
        (exif_of(TURNED, (0x8769, 4, 1, b"\xff\xff\0\0")), (24, 16)),  # a directory beyond the end
        (exif_of((0x0112, 2, 2, b"6\0\0\0")), (16, 24)),  # an orientation that is text
        (exif_of((0x0112, 3, 1, b"\x63\0\0\0")), (16, 24)),  # an orientation of 99
        (b"Exif\0\0this is no TIFF", (16, 24)),
    ],
)
def test_odd_exif_tags_cost_no_picture(pixels, exif, size):
    data = encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)
    seen = check_picture(data)
    assert seen.shape == (*size, 3)
    expected = np.rot90(pixels, -1) if size == (24, 16) else pixels
    assert np.abs(seen.astype(int) - expected).mean() < 4


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
    ("size", "message"),
    [
        ((20000, 8), "20000x8, may be at most 20 times as long as wide"),
        ((12, 6000), "12x6000, may be at most 20 times"),
        ((161, 8), "161x8, may be at most 20 times"),
        ((8000, 7000), "8000x7000, may have at most 50,000,000 pixels"),
    ],
)
@pytest.mark.parametrize("check", [check_picture, check_mask])
def test_a_picture_beyond_the_limits_is_unreadable(size, message, check):
    with pytest.raises(UnreadablePicture, match=message):
        check(encoded(Image.new("1", size)))


def test_a_picture_at_the_limit_of_the_sides_is_read():
    assert check_picture(encoded(Image.new("RGB", (160, 8)))).shape == (8, 160, 3)


def dds_of_an_unknown_kind() -> bytes:
    """A picture that Pillow knows and cannot decode, which it says by NotImplementedError."""
    head = struct.pack("<7L44x", 124, 0, 16, 16, 0, 0, 0)
    return b"DDS " + head + struct.pack("<2L4s5L", 32, 4, b"????", 0, 0, 0, 0, 0) + bytes(20)


@pytest.mark.parametrize("check", [check_picture, check_mask])
def test_whatever_a_decoder_raises_is_an_unreadable_picture(pixels, check, monkeypatch):
    with pytest.raises(UnreadablePicture, match="cannot be decoded: Unimplemented pixel format"):
        check(dds_of_an_unknown_kind())

    def fails(picture):
        raise struct.error

    data = encoded(Image.fromarray(pixels), "BMP")
    monkeypatch.setattr(BmpImagePlugin.BmpImageFile, "load", fails)
    with pytest.raises(UnreadablePicture, match="cannot be decoded: error"):
        check(data)


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
def test_what_other_programs_would_execute_is_no_picture(check, tmp_path, monkeypatch):
    """Pillow gives EPS to Ghostscript, which is here a program that leaves a trace."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # which Pillow looks for only once
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n0 0 moveto\n"
    with Image.open(io.BytesIO(data)) as opened, contextlib.suppress(OSError):
        assert opened.format == "EPS"
        opened.load()
    assert (tmp_path / "was-run").exists()
    (tmp_path / "was-run").unlink()
    with pytest.raises(UnreadablePicture, match="no known picture format"):
        check(data)
    assert not (tmp_path / "was-run").exists()


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


# ---------------------------------------------------------------- files


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("pipe.png", "no regular file"),
        ("zero.png", "no regular file"),
        ("folder.png", "directory"),
        ("gone.png", "is missing from"),
        ("a" * 300 + ".png", "too long"),
        ("nul\0.png", "null"),
        ("half \ud83d.png", "surrogates"),
    ):
        with pytest.raises(UnreadablePicture, match=f"(?i)picture {name[:9]}.*{reason}"):
            read_file(tmp_path, name)
        assert num_bytes(tmp_path / name) is None
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(UnreadablePicture, match="no regular file"):
            read_picture(tmp_path / name)


def test_a_file_of_too_many_bytes_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)  # a file with a hole takes no space
    with pytest.raises(UnreadablePicture, match="134,217,729 bytes, more than 134,217,728"):
        read_file(tmp_path, "a.png")


@pytest.mark.parametrize(("on_disk", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_is_found_however_its_accents_are_composed(pixels, tmp_path, on_disk, asked):
    folder, name = "\xdcbung", "caf\xe9.png"
    there = tmp_path / unicodedata.normalize(on_disk, folder)
    there.mkdir()
    (there / unicodedata.normalize(on_disk, name)).write_bytes(encoded(Image.fromarray(pixels)))
    wanted = unicodedata.normalize(asked, f"{folder}/{name}")
    assert not (tmp_path / wanted).exists()
    np.testing.assert_array_equal(check_picture(read_file(tmp_path, wanted)), pixels)
    np.testing.assert_array_equal(read_picture(tmp_path / wanted), pixels)
    assert num_bytes(tmp_path / wanted) == len(encoded(Image.fromarray(pixels)))


def test_bytes_that_are_no_text_can_be_printed():
    assert pictures.printable(os.fsdecode(b"caf\xe9 \xc3\xa9.png")) == "caf\\xe9 \xe9.png"

"""A small world of pictures, each with boxes, whose texts, polygons and masks are known."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, QUICKSTART, ROOT
from PIL import Image, ImageDraw

from fuzz.cases import balanced, ppt, reasoned, told
from ppt.config import ConfigError
from ppt.images.masks import decode_rle
from ppt.store.nodes import Node, Store

SIZE = (32, 40)
"""The (height, width) of the pictures."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 with x1 and y1 exclusive."""


def box_of(number: int) -> Box:
    """Return the box of an expression."""
    rng = random.Random(number)
    x, y = rng.randrange(SIZE[1] - 10), rng.randrange(SIZE[0] - 10)
    return x, y, x + rng.randrange(3, 10), y + rng.randrange(3, 10)


def text_of(number: int) -> str:
    """Return the expression of a number."""
    return f"box {number} here"


def polygon_of(number: int) -> list[int]:
    """Return the polygon around a box."""
    x0, y0, x1, y1 = box_of(number)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def mask_of(number: int) -> np.ndarray:
    """Return the mask of a box."""
    mask = np.zeros(SIZE, bool)
    x0, y0, x1, y1 = box_of(number)
    mask[y0:y1, x0:x1] = True
    return mask


@functools.cache
def picture(number: int, form: str = "JPEG") -> bytes:
    """Return the file of a picture of `SIZE`."""
    image = Image.new("RGB", SIZE[::-1], (40 * number % 256, 120, 90))
    ImageDraw.Draw(image).rectangle((5, 5, 20, 20), fill=(220, 30 * number % 256, 20))
    return encoded(image, form)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """Return the file of a picture in a format."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@functools.cache
def photos() -> tuple[bytes, ...]:
    """Return a few real pictures; without the shared data, those of the documentation."""
    found = sorted(DATA.glob("imagenet-sample/train/*/*")) + sorted(DATA.glob("miniref/**/*.jpg"))
    small = [path for path in found if path.is_file() and path.stat().st_size < 200_000]
    return tuple(path.read_bytes() for path in (small[::7][:20] or [ROOT / "docs" / "scene.png"]))


# ---------------------------------------------------------------- what prepare makes of data


def prepare(
    folder: Path, overrides: list[str], check: Callable[[Mapping[str, list[Node]]], None]
) -> str:
    """Run `ppt prepare` on data, and check the books and the reasons.

    Args:
        folder: the folder of the input, into which the store goes.
        overrides: those that name the data.
        check: is called with the nodes by their kinds if prepare comes to its end.
    """
    try:
        result = ppt(
            *("prepare", str(QUICKSTART), "--local", f"store={folder / 'runs'}", "num_buckets=1"),
            *("name=fuzz", *overrides),
        )
    except ConfigError as error:
        return told(error)
    if result.exit_code == 2:
        return "told"
    assert result.exit_code == 0, result.output
    store, nodes = Store(str(folder / "runs")), {}
    for kind in ("samples", "ground_truth"):
        found = sorted(
            path.parent for path in (folder / "runs").glob(f"store/{kind}/*/manifest.json")
        )
        nodes[kind] = [Node(store, kind, path.name, {}, 1) for path in found]
    everything = [node for some in nodes.values() for node in some]
    quarantined = 0
    for node in everything:
        balanced(node.counts())
        rows = node.quarantine().to_pylist()
        reasoned(rows)
        left_out = sum(row["num_expressions"] for row in rows)
        assert left_out == node.counts()["expressions"]["quarantined"], rows
        quarantined += len(rows)
    check(nodes)
    return "quarantined" if quarantined else "right"


def texts_in(nodes: list[Node]) -> dict[tuple[str, str], str]:
    """Return the text of each expression in some samples, by picture and expression."""
    return {
        (row["picture"], expression["expression_id"]): expression["text"]
        for node in nodes
        for row in node.read_all().to_pylist()
        for expression in row["expressions"]
    }


def masks_in(nodes: list[Node]) -> dict[tuple[str, str], np.ndarray]:
    """Return each mask in some tables of ground truth, by picture and expression."""
    return {
        (row["picture"], row["expression_id"]): decode_rle(row["mask"], row["height"], row["width"])
        for node in nodes
        for row in node.read_all().to_pylist()
    }

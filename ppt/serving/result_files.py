"""Predictions as files: for each an overlay, a mask and a JSON file, and COCO's results for all.

No file is overwritten, except by the same result: where there is another file of a name, the name
gets a number.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ppt.serving.predictor import PicturePrediction, save_mask
from ppt.store.nodes import digest_of

PARTS = (".png", ".mask.png", ".json")
"""How the names of a result's files end."""

COCO_PARTS = (".results.json", ".images.json")
"""How the names of the files in COCO's format end: the results, and the pictures they refer to."""

MOST_BYTES = 100
"""The most bytes that the picture and the text may each have in a file's name, which has 255."""

_COCO_ID = re.compile(r"(?:COCO_\w+_)?(\d{12})")


def write_prediction(prediction: PicturePrediction, out: Path, file_name: str) -> Path:
    """Write a prediction as files, and return the path of the overlay.

    The files are <name>.png (the overlay), <name>.mask.png (the mask) and <name>.json (the rest),
    where <name> is made of the picture's `file_name` and the text.
    """
    told = json.dumps(prediction.as_dict())
    name = _unused(out, f"{_stem(file_name)}-{_slug(prediction.text)}", PARTS, {".json": told})
    overlay = out / f"{name}.png"
    prediction.overlay().save(overlay)
    save_mask(prediction.mask, out / f"{name}.mask.png")
    (out / f"{name}.json").write_text(told)
    return overlay


def write_coco(rows: list[dict[str, Any]], out: Path) -> Path:
    """Write predictions as COCO's results, and return the path.

    coco.results.json is the list of results; its categories are the texts. coco.images.json names
    the pictures and the texts of its numbers, so that pycocotools can read both:
    `COCO("coco.images.json").loadRes("coco.results.json")`.

    Args:
        rows: dictionaries with the keys of `PicturePrediction.as_dict`.
        out: the folder.
    """
    results, about = (json.dumps(part) for part in coco_results(rows))
    told = dict(zip(COCO_PARTS, (results, about), strict=True))
    name = _unused(out, "coco", COCO_PARTS, told)
    for part, text in told.items():
        (out / f"{name}{part}").write_text(text)
    return out / f"{name}{COCO_PARTS[0]}"


def coco_results(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return COCO's list of results for predictions, and the data set to which it refers.

    A picture that is called as COCO's are (COCO_train2014_000000000009.jpg) has COCO's number, and
    all others are counted on from 1. Texts are the categories, counted from 1.
    """
    rows = list(rows)
    images = {row["picture"]: row for row in rows}
    ids = _image_ids(images)
    categories = {text: i for i, text in enumerate(dict.fromkeys(r["expression"] for r in rows), 1)}
    results = [
        {
            "image_id": ids[row["picture"]],
            "category_id": categories[row["expression"]],
            "segmentation": row["mask"],
            "bbox": row["box"],
            "score": row["score"],
            "sentence": row["expression"],
        }
        for row in rows
    ]
    about = {
        "info": {"description": "pictures and texts of predictions by ppt"},
        "licenses": [],
        "images": [
            {
                "id": ids[name],
                "file_name": name,
                "height": row["height"],
                "width": row["width"],
            }
            for name, row in images.items()
        ],
        "categories": [{"id": i, "name": text} for text, i in categories.items()],
        "annotations": [],
    }
    return results, about


def _image_ids(pictures: Iterable[str]) -> dict[str, int]:
    """Return a number for each picture; the first of a COCO name has COCO's."""
    ids: dict[str, int] = {}
    others = []
    for name in pictures:
        found = _COCO_ID.fullmatch(PurePosixPath(name).stem)
        if found and int(found[1]) not in ids.values():
            ids[name] = int(found[1])
        else:
            others.append(name)
    unused = (number for number in itertools.count(1) if number not in set(ids.values()))
    return ids | dict(zip(others, unused, strict=False))


def _unused(out: Path, name: str, parts: tuple[str, ...], told: Mapping[str, str]) -> str:
    """Return a name for files, with a number if it belongs to others than those of this result.

    Args:
        out: the folder.
        name: the name without a number.
        parts: how the names of the files end.
        told: the contents by which files are known as those of this result, by their ends.
    """

    def is_used(name: str) -> bool:
        same = all(_holds(out / f"{name}{part}", text) for part, text in told.items())
        return not same and any((out / f"{name}{part}").exists() for part in parts)

    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not is_used(name))


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _stem(file_name: str) -> str:
    """Return the name of a picture without its suffix, in a form that can be part of a file name.

    What is not UTF-8 becomes "_", and a long name is cut.
    """
    stem = re.sub("[\udc80-\udcff/\0]", "_", Path(file_name).stem)
    return stem.encode()[:MOST_BYTES].decode(errors="ignore")


def _slug(text: str) -> str:
    """Return the text in a form that can be part of a file name."""
    slug = re.sub(r"\W+", "-", text.lower()).strip("-")[:60]
    return slug.encode()[:MOST_BYTES].decode(errors="ignore") or digest_of(text)[:8]

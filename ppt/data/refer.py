"""The REFER format: RefCOCO, RefCOCO+, RefCOCOg, and one's own data in that layout.

    <root>/<dataset>/refs(<split_by>).p    what is said of which object, and the splits
    <root>/<dataset>/instances.json        pictures and, for evaluation alone, annotations
    <root>/images/train2014/*.jpg          or another of IMAGE_FOLDERS

A picture is known by its file name in instances.json (the refs' own carries a suffix), an
expression by "<ref_id>-<sent_id>". Every sentence of every ref counts.
"""

from __future__ import annotations

import functools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ppt.config import ReferData
from ppt.data.pictures import UnreadablePicture, check_picture
from ppt.data.sources import (
    RawExpression,
    RawMask,
    RawPicture,
    Rejected,
    fingerprint_of,
    split_expressions,
)
from ppt.masks import annotation_to_mask

IMAGE_FOLDERS = (
    "images/train2014",
    "images/mscoco/images/train2014",
    "images/mscoco/train2014",
    "train2014",
    "mscoco/images/train2014",
    "mscoco/train2014",
    "coco/train2014",
    "images",
)
"""Where pictures are looked for, below the root and then beside it."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings and numbers; anything that would run code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refuses to load {module}.{name}: plain data only")


class ReferSource:
    """One split, or several, of a REFER data set. Opening it reads the index, no picture."""

    def __init__(self, config: ReferData) -> None:
        """Raises `FileNotFoundError` or `ValueError` that names the field and the path."""
        self._config = config
        if not config.root.is_dir():
            raise FileNotFoundError(f"data root {str(config.root)!r} is no folder: set `root`")
        self._folder = config.root / config.dataset
        if not self._folder.is_dir():
            found = sorted(p.parent.name for p in config.root.glob("*/instances.json"))
            raise FileNotFoundError(
                f"dataset {config.dataset!r} is not in {str(config.root)!r} (there: {found})"
            )
        self._pictures = self._read_pictures()
        self._refs = self._read_refs()
        self._images = self._find_images()

    def _read_refs(self) -> dict[str, list[dict]]:
        """The chosen splits' refs by picture, in the file's order."""
        path = self._folder / f"refs({self._config.split_by}).p"
        if not path.is_file():
            found = sorted(p.name for p in self._folder.glob("refs(*).p"))
            raise FileNotFoundError(
                f"split_by {self._config.split_by!r}: no {str(path)!r} (there: {found})"
            )
        try:
            with path.open("rb") as stream:
                refs = _PlainUnpickler(stream, encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{str(path)!r} is no list of refs: {error}") from None
        known = {ref["split"] for ref in refs}
        splits = self._splits()
        if missing := sorted(set(splits) - known):
            raise ValueError(f"split {missing} is not in {str(path)!r} (there: {sorted(known)})")
        chosen: dict[str, list[dict]] = {}
        for ref in refs:
            if ref["split"] in splits:
                if ref["image_id"] not in self._pictures:
                    raise ValueError(
                        f"ref {ref['ref_id']} names image {ref['image_id']}, "
                        f"which {str(self._folder / 'instances.json')!r} does not list"
                    )
                chosen.setdefault(self._pictures[ref["image_id"]], []).append(ref)
        return chosen

    def _splits(self) -> tuple[str, ...]:
        split = self._config.split
        return (split,) if isinstance(split, str) else tuple(split)

    def _load_instances(self) -> dict:
        path = self._folder / "instances.json"
        if not path.is_file():
            raise FileNotFoundError(f"dataset {self._config.dataset!r}: no {str(path)!r}")
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is no JSON: {error}") from None

    def _read_pictures(self) -> dict[int, str]:
        """File names by image id; the annotations beside them are dropped unread."""
        return {image["id"]: image["file_name"] for image in self._load_instances()["images"]}

    def _find_images(self) -> Path:
        root = self._config.root
        places = [base / f for base in (root, root.parent) for f in IMAGE_FOLDERS]
        folders = [place for place in places if place.is_dir()]
        for folder in folders:
            if any((folder / key).is_file() for key in self._refs):
                return folder
        if folders:
            return folders[0]
        raise FileNotFoundError(
            f"no folder with the pictures of root {str(root)!r}: looked for {IMAGE_FOLDERS}"
        )

    @functools.cached_property
    def _annotations(self) -> dict[int, dict]:
        """Ground truth: opened by `read_ground_truth` and its fingerprint, by nothing else."""
        wanted = {ref["ann_id"] for refs in self._refs.values() for ref in refs}
        annotations = self._load_instances().get("annotations", [])
        return {a["id"]: a for a in annotations if a["id"] in wanted}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Pictures by name and number of bytes, expressions by id and text."""
        parts: list[Any] = ["refer"]
        for key in self.keys():
            path = self._images / key
            num_bytes = path.stat().st_size if path.is_file() else None
            parts.append([key, num_bytes, [(e.expression_id, e.text) for e in self._raw(key)]])
        return fingerprint_of(parts)

    @functools.cached_property
    def ground_truth_fingerprint(self) -> str:
        """The samples' fingerprint and every chosen annotation's polygons or run lengths."""
        parts: list[Any] = [self.fingerprint]
        for key in self.keys():
            for ref in self._refs[key]:
                annotation = self._annotations.get(ref["ann_id"], {})
                parts.append([ref["ref_id"], annotation.get("segmentation")])
        return fingerprint_of(parts)

    def keys(self) -> list[str]:
        return list(self._refs)

    def num_expressions(self, key: str) -> int:
        return sum(len(ref["sentences"]) for ref in self._refs[key])

    def _raw(self, key: str) -> list[RawExpression]:
        return [
            RawExpression(f"{ref['ref_id']}-{sentence['sent_id']}", sentence["sent"])
            for ref in self._refs[key]
            for sentence in ref["sentences"]
        ]

    def _read_image(self, key: str) -> tuple[bytes, tuple[int, int]]:
        path = self._images / key
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise UnreadablePicture(f"picture {key} is missing from {self._images}") from None
        except OSError as error:
            raise UnreadablePicture(f"picture {key} cannot be read: {error}") from None
        return data, check_picture(data).shape[:2]

    def read(self, key: str) -> RawPicture:
        image, _ = self._read_image(key)
        kept, rejected = split_expressions(self._raw(key))
        return RawPicture(image, None, kept, rejected)

    def read_ground_truth(self, key: str) -> tuple[list[RawMask], list[Rejected]]:
        masks: list[RawMask] = []
        rejected: list[Rejected] = []
        worded = {e.expression_id for e in split_expressions(self._raw(key))[0]}
        try:
            _, size = self._read_image(key)
        except UnreadablePicture as error:
            return [], [Rejected(e, str(error)) for e in sorted(worded)]
        for ref in self._refs[key]:
            ids = [f"{ref['ref_id']}-{sentence['sent_id']}" for sentence in ref["sentences"]]
            ids = [i for i in ids if i in worded]
            try:
                mask = self._mask(ref["ann_id"], size)
            except ValueError as error:
                rejected += [Rejected(i, f"annotation {ref['ann_id']}: {error}") for i in ids]
            else:
                masks += [RawMask(i, None, mask) for i in ids]
        return masks, rejected

    def _mask(self, ann_id: int, size: tuple[int, int]) -> np.ndarray:
        if ann_id not in self._annotations:
            raise ValueError("instances.json does not list it")
        return annotation_to_mask(self._annotations[ann_id].get("segmentation"), size)

"""The REFER format: RefCOCO, RefCOCO+, RefCOCOg, and one's own data in their layout.

    <root>/<dataset>/refs(<split_by>).p    the expressions with their objects and splits
    <root>/<dataset>/instances.json        the pictures and, for evaluation only, the annotations
    <root>/images/train2014/*.jpg          the pictures; or in another of IMAGE_FOLDERS

The key of a picture is its file name in instances.json; the one in a ref has a suffix. The id of an
expression is "<ref_id>-<sent_id>". Every sentence of every ref is an expression.
"""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppt.config import DataFormat
from ppt.data.expected import SplitCount, count_splits, tell_partial
from ppt.data.source import (
    RawExpression,
    RawMask,
    RawPicture,
    Rejected,
    fingerprint_of,
    split_expressions,
)
from ppt.images.masks import annotation_to_mask
from ppt.images.pictures import UnreadablePicture, check_picture, num_bytes, read_file

IMAGE_FOLDERS = (
    "images/train2014",
    "images/mscoco/images/train2014",
    "images/mscoco/train2014",
    "train2014",
    "mscoco/images/train2014",
    "mscoco/train2014",
    "coco/images/train2014",
    "coco/train2014",
    "images",
)
"""The folders in which pictures are looked for, first below the root and then beside it."""

_REF_KEYS = {"ref_id", "ann_id", "image_id", "split", "sentences"}
_UNLISTED = "image_id "  # begins the key of a picture that is not listed in instances.json
_NO_PICKLE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)  # the errors of the unpickler on bytes of another kind of file


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that loads lists, dicts, strings and numbers, and refuses to run any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refuses to load {module}.{name}: plain data only")


class ReferData(DataFormat):
    """RefCOCO, RefCOCO+ or RefCOCOg on disk, or one's own data in their layout."""

    # The folder that holds the folder of the data set.
    root: Path
    # The name of the data set's folder: refcoco, refcoco+, refcocog or one's own.
    dataset: str = "refcoco"
    # Who made the splits; it is part of the name of the index, refs(<split_by>).p.
    split_by: str = "unc"
    # One split or a list of splits, whose pictures are taken together.
    split: str | tuple[str, ...] = "train"

    def open(self) -> ReferSource:
        return ReferSource(self)


class ReferSource:
    """One or several splits of a REFER data set."""

    def __init__(self, config: ReferData) -> None:
        """Read the index, but no picture and no annotation. Raises as `DataFormat.open`."""
        self._config = config
        file_names = _file_names(config)
        refs = _read_refs(config)
        known = {ref["split"] for ref in refs}
        splits = (config.split,) if isinstance(config.split, str) else config.split
        if absent := sorted(set(splits) - known):
            raise ValueError(
                f"split {absent} is not in {str(_refs_path(config))!r} (there: {sorted(known)})"
            )
        self._refs: dict[str, list[dict]] = {}  # by picture, in the order of the index
        for ref in refs:
            if ref["split"] in splits:
                self._refs.setdefault(_picture_of(ref, file_names), []).append(ref)
        images = find_images(config, self._refs)
        if images is None:
            raise FileNotFoundError(
                f"no folder with the pictures of root {str(config.root)!r}: "
                f"looked for {IMAGE_FOLDERS}"
            )
        self._images = images

    @property
    def note(self) -> str | None:
        """What is missing of the chosen splits, if anything is."""
        config = self._config
        refs = [(ref["split"], key) for key in self.keys() for ref in self._refs[key]]
        counts = count_splits(refs, self._images, config.dataset, config.split_by)
        told = tell_partial({split: counts[split] for split, _ in refs})
        return told and f"{config.dataset} ({config.split_by}) is partial: {told}"

    @functools.cached_property
    def _annotations(self) -> dict[int, dict]:
        """The ground truth. Only `read_ground_truth` and its fingerprint use it."""
        wanted = {ref["ann_id"] for refs in self._refs.values() for ref in refs}
        annotations = _load_instances(_instances_path(self._config)).get("annotations", [])
        return {a["id"]: a for a in annotations if a["id"] in wanted}

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash of the pictures' names and numbers of bytes, and of the expressions."""
        parts: list[Any] = ["refer"]
        for key in self.keys():
            texts = [(e.expression_id, e.text) for e in self._raw(key)]
            parts.append([key, num_bytes(self._images / key), texts])
        return fingerprint_of(parts)

    @functools.cached_property
    def ground_truth_fingerprint(self) -> str:
        """The hash of the samples' fingerprint and the polygons or run lengths of the objects."""
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

    def file_size(self, key: str) -> int | None:
        return num_bytes(self._images / key)

    def _raw(self, key: str) -> list[RawExpression]:
        return [
            RawExpression(f"{ref['ref_id']}-{sentence['sent_id']}", sentence["sent"])
            for ref in self._refs[key]
            for sentence in ref["sentences"]
        ]

    def _read_image(self, key: str) -> tuple[bytes, tuple[int, int]]:
        if key.startswith(_UNLISTED):
            raise UnreadablePicture(f"{key} is not listed in instances.json")
        data = read_file(self._images, key)
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
        segmentation = self._annotations[ann_id].get("segmentation")
        try:
            return annotation_to_mask(segmentation, size)
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"segmentation is neither polygons nor RLE: {error}") from None


# ---------------------------------------------------------------- the index


def split_counts(config: ReferData) -> dict[str, SplitCount]:
    """Count the refs and pictures of every split of a data set, whichever `split` is chosen.

    Raises as `DataFormat.open` if the index cannot be read. Pictures may be missing, even all.
    """
    file_names = _file_names(config)
    refs = [(ref["split"], _picture_of(ref, file_names)) for ref in _read_refs(config)]
    images = find_images(config, {name for _, name in refs})
    return count_splits(refs, images, config.dataset, config.split_by)


def _folder(config: ReferData) -> Path:
    if not config.root.is_dir():
        raise FileNotFoundError(f"data root {str(config.root)!r} is no folder: set `root`")
    folder = config.root / config.dataset
    if not folder.is_dir():
        found = sorted(p.parent.name for p in config.root.glob("*/instances.json"))
        raise FileNotFoundError(
            f"dataset {config.dataset!r} is not in {str(config.root)!r} (there: {found})"
        )
    return folder


def _refs_path(config: ReferData) -> Path:
    return _folder(config) / f"refs({config.split_by}).p"


def _read_refs(config: ReferData) -> list[dict]:
    path = _refs_path(config)
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("refs(*).p"))
        raise FileNotFoundError(f"split_by {config.split_by!r}: no {str(path)!r} (there: {found})")
    try:
        with path.open("rb") as stream:
            refs = _PlainUnpickler(stream, encoding="latin1").load()
    except _NO_PICKLE as error:
        raise ValueError(f"{str(path)!r} is no list of refs: {error}") from None
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{str(path)!r} is no list of refs: it holds a {type(refs).__name__}")
    for number, ref in enumerate(refs):
        if lacking := sorted(_REF_KEYS - ref.keys()):
            raise ValueError(f"{str(path)!r}: ref {number} lacks {lacking}")
        if not all({"sent_id", "sent"} <= sentence.keys() for sentence in ref["sentences"]):
            raise ValueError(f"{str(path)!r}: ref {number} has a sentence without sent_id or sent")
    return refs


def _instances_path(config: ReferData) -> Path:
    path = _folder(config) / "instances.json"
    if not path.is_file():
        raise FileNotFoundError(f"dataset {config.dataset!r}: no {str(path)!r}")
    return path


def _load_instances(path: Path) -> dict:
    try:
        instances = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from None
    if not isinstance(instances, dict) or "images" not in instances:
        raise ValueError(f"{str(path)!r} has no `images`: COCO's instances have")
    return instances


def _file_names(config: ReferData) -> dict[int, str]:
    """Return the file names of the pictures by their image id."""
    path = _instances_path(config)
    state = path.stat()
    return _parsed_file_names(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _parsed_file_names(path: Path, mtime_ns: int, num_bytes: int) -> dict[int, str]:
    """Read the file names, once for all splits of a data set: the file is large."""
    return {image["id"]: image["file_name"] for image in _load_instances(path)["images"]}


def _picture_of(ref: dict, file_names: Mapping[int, str]) -> str:
    """Return the key of a ref's picture; if it is not listed, a key that is no file's name."""
    return file_names.get(ref["image_id"], f"{_UNLISTED}{ref['image_id']}")


def find_images(config: ReferData, names: Collection[str]) -> Path | None:
    """Return the first of the usual folders with one of the pictures, or the first that exists.

    None if none of the folders exists.
    """
    places = [base / f for base in (config.root, config.root.parent) for f in IMAGE_FOLDERS]
    folders = [place for place in places if place.is_dir()]
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    return folders[0] if folders else None

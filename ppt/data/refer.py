"""The REFER format: RefCOCO, RefCOCO+, RefCOCOg, and one's own data in their layout.

    <root>/<dataset>/refs(<split_by>).p    the expressions with their objects and splits
    <root>/<dataset>/instances.json        the pictures and, for evaluation only, the annotations
    <root>/images/train2014/*.jpg          the pictures; or in another of IMAGE_FOLDERS

The key of a picture is its file name in instances.json; the one in a ref has a suffix. The id of an
expression is "<ref_id>-<sent_id>". Every sentence of every ref is an expression.

An index or instances.json whose structure is broken is an error. What is wrong with one sentence,
picture or annotation costs its expressions only: they are quarantined. Ids that are there twice
belong to nobody, so all that has one is quarantined.
"""

from __future__ import annotations

import functools
import reprlib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppt.config import DataFormat
from ppt.data.expected import SplitCount, count_splits, tell_partial
from ppt.data.refer_index import Id, ListedImage, Ref, read_annotations, read_images, read_refs
from ppt.data.source import (
    RawExpression,
    RawMask,
    RawPicture,
    Rejected,
    fingerprint_of,
    split_expressions,
)
from ppt.images.masks import annotation_to_mask, fit_mask
from ppt.images.pictures import (
    MAX_PIXELS,
    UnreadablePicture,
    UprightPicture,
    decode_picture,
    num_bytes,
    read_file,
)

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

_NO_PICTURE = "image_id "  # begins the key of a picture of which instances.json gives no file


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
        self._listed = _listed_images(config)
        refs = _read_refs(config)
        known = {ref.split for ref in refs}
        splits = (config.split,) if isinstance(config.split, str) else config.split
        if absent := sorted(set(splits) - known):
            raise ValueError(
                f"split {absent} is not in {str(_refs_path(config))!r} (there: {sorted(known)})"
            )
        self._refs: dict[str, list[Ref]] = {}  # by picture, in the order of the index
        for ref in refs:
            if ref.split in splits:
                self._refs.setdefault(_picture_of(ref, self._listed), []).append(ref)
        self._times = Counter(str(ref.ref_id) for refs in self._refs.values() for ref in refs)
        images = find_images(config, self._refs)
        if images is None:
            raise FileNotFoundError(
                f"no folder with the pictures of root {str(config.root)!r}: "
                f"looked for {IMAGE_FOLDERS}"
            )
        self._images = images

    @property
    def note(self) -> str | None:
        """A remark on what is missing of the chosen splits; None if they are complete."""
        config = self._config
        refs = [(ref.split, key) for key in self.keys() for ref in self._refs[key]]
        counts = count_splits(refs, self._images, config.dataset, config.split_by)
        told = tell_partial({split: counts[split] for split, _ in refs})
        return told and f"{config.dataset} ({config.split_by}) is partial: {told}"

    @functools.cached_property
    def _annotations(self) -> dict[Id, list[dict]]:
        """The ground truth by id. Only `read_ground_truth` and its fingerprint use it."""
        wanted = {ref.ann_id for refs in self._refs.values() for ref in refs}
        found: dict[Id, list[dict]] = {}
        for annotation in read_annotations(_instances_path(self._config)):
            if annotation["id"] in wanted:
                found.setdefault(annotation["id"], []).append(annotation)
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """The hash of the pictures' names and numbers of bytes, and of the expressions."""
        parts: list[Any] = ["refer"]
        for key in self.keys():
            kept, rejected = self._expressions(key)
            texts = [(e.expression_id, e.text) for e in kept]
            faults = [(r.expression_id, r.reason) for r in rejected]
            parts.append([key, num_bytes(self._images / key), texts, faults])
        return fingerprint_of(parts)

    @functools.cached_property
    def ground_truth_fingerprint(self) -> str:
        """The hash of the samples' fingerprint, the annotations and the pictures' listed sizes."""
        parts: list[Any] = [self.fingerprint]
        for key in self.keys():
            for ref in self._refs[key]:
                image = self._listed.get(ref.image_id)
                annotations = [
                    [annotation.get("image_id"), annotation.get("segmentation")]
                    for annotation in self._annotations.get(ref.ann_id, [])
                ]
                parts.append([ref.ref_id, ref.image_id, image and image.size, annotations])
        return fingerprint_of(parts)

    def keys(self) -> list[str]:
        return list(self._refs)

    def num_expressions(self, key: str) -> int:
        return sum(len(ref.sentences) for ref in self._refs[key])

    def file_size(self, key: str) -> int | None:
        return num_bytes(self._images / key)

    def broken_expressions(self) -> list[Rejected]:
        """Return the expressions that `read` will reject. No picture is opened."""
        return [rejected for key in self._refs for rejected in self._expressions(key)[1]]

    def _expressions(self, key: str) -> tuple[list[RawExpression], list[Rejected]]:
        """Return the expressions of a picture that can be used, and those that cannot."""
        kept: list[RawExpression] = []
        rejected: list[Rejected] = []
        for ref in self._refs[key]:
            some, broken = self._expressions_of(ref)
            kept += some
            rejected += broken
        return kept, rejected

    def _expressions_of(self, ref: Ref) -> tuple[list[RawExpression], list[Rejected]]:
        """Return the expressions of a ref that can be used, and those that cannot."""
        ids = [sentence.expression_id for sentence in ref.sentences]
        if (times := self._times[str(ref.ref_id)]) > 1:
            return [], [Rejected(i, f"ref_id {ref.ref_id} is there {times} times") for i in ids]
        number = Counter(ids)
        kept, rejected = split_expressions(s for s in ref.sentences if number[s.expression_id] == 1)
        twice = [
            Rejected(i, f"its ref has the sent_id of {i} {number[i]} times")
            for i in ids
            if number[i] > 1
        ]
        return kept, rejected + twice

    def _read_image(self, key: str) -> bytes:
        if key.startswith(_NO_PICTURE):
            listed = self._refs[key][0].image_id in self._listed
            told = "is there as several pictures" if listed else "is not listed"
            raise UnreadablePicture(f"{key} {told} in instances.json")
        return read_file(self._images, key)

    def read(self, key: str) -> RawPicture:
        image = self._read_image(key)
        decode_picture(image)
        return RawPicture(image, None, *self._expressions(key))

    def read_ground_truth(self, key: str) -> tuple[list[RawMask], list[Rejected]]:
        masks: list[RawMask] = []
        rejected: list[Rejected] = []
        try:
            picture = decode_picture(self._read_image(key))
        except UnreadablePicture as error:
            return [], [Rejected(e.expression_id, str(error)) for e in self._expressions(key)[0]]
        for ref in self._refs[key]:
            ids = [e.expression_id for e in self._expressions_of(ref)[0]]
            try:
                mask = self._mask(ref, picture)
            except ValueError as error:
                rejected += [Rejected(i, f"annotation {ref.ann_id}: {error}") for i in ids]
            else:
                masks += [RawMask(i, None, mask) for i in ids]
        return masks, rejected

    def _mask(self, ref: Ref, picture: UprightPicture) -> np.ndarray:
        """Return the mask of a ref, bool [height, width] of the upright picture.

        An annotation belongs to a picture of the size that its run lengths have, or that
        instances.json gives the picture; `fit_mask` brings it to the picture's file.
        """
        found = self._annotations.get(ref.ann_id, [])
        if not found:
            raise ValueError("instances.json does not list it")
        if len(found) > 1:
            raise ValueError(f"instances.json lists it {len(found)} times")
        (annotation,) = found
        if (owner := annotation.get("image_id", ref.image_id)) != ref.image_id:
            raise ValueError(f"it is of image {reprlib.repr(owner)}, not of {ref.image_id!r}")
        segmentation = annotation.get("segmentation")
        size = picture.pixels.shape[:2]
        if isinstance(segmentation, dict) and "size" in segmentation:
            annotated = _check_size(segmentation["size"])
        else:
            image = self._listed[ref.image_id]
            annotated = _check_size(image.size) if image and image.size != (None, None) else size
        return fit_mask(annotation_to_mask(segmentation, annotated), size, picture.orientation)


def _check_size(given: Any) -> tuple[int, int]:
    """Return a (height, width) that stands in instances.json; ValueError if it is no size."""
    match given:
        case [int(height), int(width)] if min(height, width) > 0 and height * width <= MAX_PIXELS:
            return height, width
    raise ValueError(f"it is of a picture whose [height, width] is {reprlib.repr(given)}")


# ---------------------------------------------------------------- the index


def split_counts(config: ReferData) -> dict[str, SplitCount]:
    """Count the refs and pictures of every split of a data set, whichever `split` is chosen.

    Raises as `DataFormat.open` if the index cannot be read. Pictures may be missing, even all.
    """
    listed = _listed_images(config)
    refs = [(ref.split, _picture_of(ref, listed)) for ref in _read_refs(config)]
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


def _read_refs(config: ReferData) -> list[Ref]:
    path = _refs_path(config)
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("refs(*).p"))
        raise FileNotFoundError(f"split_by {config.split_by!r}: no {str(path)!r} (there: {found})")
    return read_refs(path)


def _instances_path(config: ReferData) -> Path:
    path = _folder(config) / "instances.json"
    if not path.is_file():
        raise FileNotFoundError(f"dataset {config.dataset!r}: no {str(path)!r}")
    return path


def _listed_images(config: ReferData) -> Mapping[Id, ListedImage | None]:
    """Return the listed pictures by their image id; None for an id of several pictures."""
    path = _instances_path(config)
    state = path.stat()
    return _read_images_once(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _read_images_once(path: Path, mtime_ns: int, num_bytes: int) -> Mapping[Id, ListedImage | None]:
    """Read the listed pictures, once for all splits of a data set: the file is large."""
    return read_images(path)


def _picture_of(ref: Ref, listed: Mapping[Id, ListedImage | None]) -> str:
    """Return the key of a ref's picture; if there is not one, a key that is no file's name."""
    image = listed.get(ref.image_id)
    return f"{_NO_PICTURE}{ref.image_id}" if image is None else image.file_name


def find_images(config: ReferData, names: Collection[str]) -> Path | None:
    """Return the first of the usual folders with one of the pictures, or the first that exists.

    None if none of the folders exists.
    """
    places = [base / f for base in (config.root, config.root.parent) for f in IMAGE_FOLDERS]
    folders = [place for place in places if place.is_dir()]
    for folder in folders:
        if any(num_bytes(folder / name) is not None for name in names):
            return folder
    return folders[0] if folders else None

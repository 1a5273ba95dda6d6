"""Whether pictures that are trained on are also measured on, which makes figures too good."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterable

from ppt.config import Data
from ppt.data.source import WITH_TRUTH, Source, open_source
from ppt.images.pictures import UnreadablePicture


@functools.cache
def shared_pictures(data: Data) -> tuple[str, ...]:
    """Return a warning if pictures of validation or evaluation are trained on, or nothing.

    Two pictures are the same if their files are. Pictures that are drawn have no file: scenes of
    different seeds differ.
    """
    told = []
    for role in WITH_TRUTH:
        measured = open_source(getattr(data, role))
        for trained in ("referring", "object_centric"):
            if number := num_equal(measured, open_source(getattr(data, trained))):
                of_it = f"{number:,} of the {len(measured.keys()):,} pictures of data.{role}"
                told.append(f"{of_it} are in data.{trained} too")
    if not told:
        return ()
    return (
        f"{', '.join(told)}: figures on pictures that were trained on are too good; give "
        "other pictures to measure on",
    )


def num_equal(one: Source, other: Source) -> int:
    """Return how many pictures of one data set are, byte for byte, in another one.

    Only pictures with as many bytes as one of the other data set are read.
    """
    sizes, there = _by_size(one), _by_size(other)
    number = 0
    for size in sizes.keys() & there.keys():
        known = set(_digests(other, there[size]))
        number += sum(digest in known for digest in _digests(one, sizes[size]))
    return number


def _by_size(source: Source) -> dict[int, list[str]]:
    """Return the keys of the pictures that are files, by their numbers of bytes."""
    found: dict[int, list[str]] = defaultdict(list)
    for key in source.keys():
        if size := source.file_size(key):
            found[size].append(key)
    return found


def _digests(source: Source, keys: Iterable[str]) -> list[bytes]:
    """Return a hash of each picture that can be read."""
    found = []
    for key in keys:
        try:
            found.append(hashlib.sha256(source.read(key).image).digest())
        except UnreadablePicture:
            continue
    return found

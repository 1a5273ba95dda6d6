"""The files of a REFER data set: the index of the refs, and the pictures and annotations of COCO.

What is wrong with the structure of a file is an error that names the file and the entry.
"""

from __future__ import annotations

import codecs
import json
import pickle
import reprlib
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppt.data.source import RawExpression, is_unicode

_REF_KEYS = {"ref_id", "ann_id", "image_id", "split", "sentences"}

_LEAST_MEMORY = 2**30
"""The bytes that reading a pickle may take, however small it is."""

Id = int | str


def _as_latin1(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are not UTF-8 as Latin-1."""
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin1"), error.end


codecs.register_error("refer_latin1", _as_latin1)


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that loads lists, dicts, strings and numbers, and refuses to run any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refuses to load {module}.{name}: plain data only")


@dataclass(frozen=True)
class Ref:
    """An object with its sentences."""

    ref_id: Id
    ann_id: Id
    image_id: Id
    split: str
    sentences: list[RawExpression]  # their texts are not checked


@dataclass(frozen=True)
class ListedImage:
    """A picture as instances.json lists it."""

    file_name: str
    size: tuple[Any, Any]  # (height, width) as they stand there, (None, None) if they do not


def read_refs(path: Path) -> list[Ref]:
    """Read refs(<split_by>).p. Raises ValueError if it is no list of refs."""
    try:
        with path.open("rb") as stream, _memory_limit(path.stat().st_size):
            # Strings of Python 2 are bytes: UTF-8, or Latin-1 where they cannot be UTF-8.
            refs = _PlainUnpickler(stream, encoding="utf-8", errors="refer_latin1").load()
    except Exception as error:  # on bytes of another kind the unpickler may raise anything
        told = str(error) or type(error).__name__
        raise ValueError(f"{str(path)!r} is no list of refs: {told}") from None
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{str(path)!r} is no list of refs: it holds a {type(refs).__name__}")
    try:
        _check_number(refs, path.stat().st_size)
        return [_parse_ref(number, ref) for number, ref in enumerate(refs)]
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None


@contextmanager
def _memory_limit(num_bytes: int) -> Iterator[None]:
    """Let this process take only so much more memory as a pickle of `num_bytes` may need.

    A few bytes of a pickle can ask for any number of places for its objects.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _LEAST_MEMORY + 100 * num_bytes
    limits = [some for some in (limit, soft, hard) if some != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _check_number(refs: list[dict], num_bytes: int) -> None:
    """Raise ValueError if there are more sentences than a file of this size can write out.

    A pickle can name one list any number of times.
    """
    given = (ref.get("sentences") for ref in refs)
    number = sum(len(sentences) for sentences in given if isinstance(sentences, list))
    if number > num_bytes:
        raise ValueError(f"it claims to have {number:,} sentences in {num_bytes:,} bytes")


def _parse_ref(number: int, ref: dict) -> Ref:
    """Check the structure of a ref; ValueError tells what is wrong with it."""
    if lacking := sorted(_REF_KEYS - ref.keys()):
        raise ValueError(f"ref {number} lacks {lacking}")
    ids = {name: ref[name] for name in ("ref_id", "ann_id", "image_id")}
    sentences = ref["sentences"]
    if not isinstance(sentences, list) or not all(isinstance(s, dict) for s in sentences):
        raise ValueError(f"ref {number} has no list of sentences: {reprlib.repr(sentences)}")
    if not all({"sent_id", "sent"} <= sentence.keys() for sentence in sentences):
        raise ValueError(f"ref {number} has a sentence without sent_id or sent")
    for name, value in [*ids.items(), *(("sent_id", s["sent_id"]) for s in sentences)]:
        if not _is_id(value):
            raise ValueError(
                f"ref {number} has the {name} {reprlib.repr(value)}, which is no number and no text"
            )
    if not isinstance(ref["split"], str):
        raise ValueError(
            f"ref {number} has the split {reprlib.repr(ref['split'])}, which is no text"
        )
    texts = [RawExpression(f"{ref['ref_id']}-{s['sent_id']}", s["sent"]) for s in sentences]
    return Ref(**ids, split=ref["split"], sentences=texts)


def _is_id(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and is_unicode(value))


def _load_instances(path: Path) -> dict:
    try:
        instances = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from None
    if not isinstance(instances, dict) or "images" not in instances:
        raise ValueError(f"{str(path)!r} has no `images`: COCO's instances have")
    return instances


def _entries(path: Path, name: str) -> list[dict]:
    """Read the `images` or `annotations` of instances.json, each of which has an id."""
    entries = _load_instances(path).get(name, [])
    if not isinstance(entries, list):
        raise ValueError(f"{str(path)!r}: `{name}` is no list: {reprlib.repr(entries)}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            raise ValueError(
                f"{str(path)!r}: entry {number} of `{name}` has no id: {reprlib.repr(entry)}"
            )
    return entries


def read_images(path: Path) -> Mapping[Id, ListedImage | None]:
    """Read the pictures of instances.json by id; None for an id that several pictures have.

    Raises ValueError if the file is no JSON, or if a picture has no id or no name.
    """
    listed: dict[Id, ListedImage | None] = {}
    for entry in _entries(path, "images"):
        name = entry.get("file_name")
        if not isinstance(name, str) or not name.strip() or not is_unicode(name):
            raise ValueError(
                f"{str(path)!r}: image {entry['id']!r} has no usable file_name: "
                f"{reprlib.repr(name)}"
            )
        image = ListedImage(name, (entry.get("height"), entry.get("width")))
        if listed.setdefault(entry["id"], image) != image:
            listed[entry["id"]] = None
    return listed


def read_annotations(path: Path) -> list[dict]:
    """Read the annotations of instances.json, each of which has an id; none if it has none.

    Raises ValueError if the file is no JSON, or if an annotation has no id.
    """
    return _entries(path, "annotations")

"""Data sets in the REFER layout, and the segmentations of COCO."""

from __future__ import annotations

import functools
import io
import json
import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from fuzz.boxes import SIZE, mask_of, masks_in, picture, polygon_of, prepare, text_of
from fuzz.cases import Input, Kind, Outcome, clear
from fuzz.mutate import changed, mutated, odd, plain
from ppt.images.masks import annotation_to_mask
from ppt.store.nodes import Node

_SPLITS = ("train", "train", "val", "testA", "testA")  # of each picture
_REFS, _INSTANCES = "refcoco/refs(unc).p", "refcoco/instances.json"
_OVERRIDES = [
    *("data.object_centric={format: toybox_objects, num_pictures: 1, seed: 0}",),
    *(
        f"data.{name}={{format: refer, root: ROOT, split: {split}}}"
        for name, split in (("referring", "train"), ("validation", "val"), ("evaluation", "testA"))
    ),
]


_BOMBS = (
    b"\x80\x02]r\xff\xff\xff\x7f.",  # asks for two billion places
    b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f",  # announces bytes without end
    b"(" * 1_000_000,
    b"\x80\x04" + b"]\x94(" * 100_000 + b"e" * 100_000 + b".",
    pickle.dumps(["x" * 100_000] * 100_000),
)
"""Small pickles that ask for much."""


@functools.cache
def _refs() -> list[dict]:
    return [
        {
            "ref_id": 10 + number,
            "ann_id": 100 + number,
            "image_id": number // 2,
            "split": _SPLITS[number // 2],
            "category_id": 1,
            "file_name": f"{number // 2}_1.jpg",
            "sentences": [
                {"sent_id": 2 * number + i, "sent": text_of(2 * number + i)} for i in range(2)
            ],
        }
        for number in range(2 * len(_SPLITS))
    ]


@functools.cache
def _instances() -> dict[str, Any]:
    height, width = SIZE
    images = [
        {"id": number, "file_name": f"{number}.jpg", "height": height, "width": width}
        for number in range(len(_SPLITS))
    ]
    annotations = [
        {"id": 100 + n, "image_id": n // 2, "segmentation": [polygon_of(2 * n)], "area": 1.0}
        for n in range(2 * len(_SPLITS))
    ]
    return {"images": images, "annotations": annotations}


def _dumped(tree: Any) -> bytes:
    """Write a tree as JSON; bytes become lists of numbers, NaN and half surrogates stay."""
    return json.dumps(tree, default=list, skipkeys=True).encode()


@st.composite
def _data_sets(draw: DrawFn) -> Input:
    files = {f"images/train2014/{n}.jpg": picture(n) for n in range(len(_SPLITS))}
    refs, instances = pickle.dumps(_refs(), protocol=2), _dumped(_instances())
    match draw(st.sampled_from(["refs"] * 4 + ["instances"] * 4 + ["bytes", "bytes", "picture"])):
        case "refs":
            refs = pickle.dumps(draw(changed(_refs())), protocol=draw(st.integers(2, 4)))
        case "instances":
            instances = _dumped(draw(changed(_instances(), odd)))
        case "bytes":
            refs, instances = draw(
                st.tuples(mutated([refs]) | st.sampled_from(_BOMBS), st.just(instances))
                | st.tuples(st.just(refs), mutated([instances]))
            )
        case "picture":
            name = draw(st.sampled_from(sorted(files)))
            files[name] = draw(mutated([files[name]]) | st.just(b""))
    return Input({**files, _REFS: refs, _INSTANCES: instances})


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(name)


def _parsed(folder: Path) -> tuple[list[Any], dict[str, Any]]:
    """Read both indices as the strictest reader would; what cannot be read is empty."""
    refs: Any = []
    instances: Any = {}
    try:
        refs = _Plain(io.BytesIO((folder / _REFS).read_bytes()), encoding="latin1").load()
        instances = json.loads((folder / _INSTANCES).read_bytes())
    except Exception:  # its bytes are damaged, and it must have been told
        pass
    return refs, instances


def _check_data_set(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    def right(nodes: Mapping[str, list[Node]]) -> None:
        refs, instances = _parsed(folder)
        sentences = sum(len(ref["sentences"]) for ref in refs if ref["split"] in _SPLITS)
        pictures = [node for node in nodes["samples"] if not _is_toybox(node)]
        into = sum(node.counts()["expressions"]["in"] for node in pictures)
        assert into == sentences, f"{into} sentences of {sentences}"
        expected = _expected(refs, instances)
        for key, mask in masks_in(nodes["ground_truth"]).items():
            assert mask.any(), f"the mask of {key} is empty"
            wanted = expected.get(key[1])
            if wanted is not None:
                assert np.array_equal(mask, wanted), f"the mask of {key} is another one"

    overrides = [text.replace("ROOT", str(folder)) for text in _OVERRIDES]
    return prepare(folder, overrides, right)  # type: ignore[return-value]


def _is_toybox(node: Node) -> bool:
    return any(row["picture"].startswith("object-") for row in node.read_all().to_pylist())


def _expected(refs: Any, instances: Any) -> dict[str, np.ndarray]:
    """Return the masks of the refs that are as they were before, by expression."""
    times = Counter(repr(ref.get("ref_id")) for ref in refs)
    before = {
        table: {entry["id"]: entry for entry in _instances()[table]}
        for table in ("images", "annotations")
    }
    found: dict[str, np.ndarray] = {}
    for number, ref in enumerate(_refs()):
        same = [other for other in refs if other == ref]
        annotations = [a for a in instances["annotations"] if a.get("id") == ref["ann_id"]]
        images = [i for i in instances["images"] if i.get("id") == ref["image_id"]]
        if (
            len(same) == 1
            and times[repr(ref["ref_id"])] == 1
            and annotations == [before["annotations"][ref["ann_id"]]]
            and images == [before["images"][ref["image_id"]]]
        ):
            ids = [f"{ref['ref_id']}-{sentence['sent_id']}" for sentence in ref["sentences"]]
            found |= dict.fromkeys(ids, mask_of(2 * number))
    return found


# ---------------------------------------------------------------- segmentations


@st.composite
def _segmentations(draw: DrawFn) -> Input:
    height, width = draw(st.tuples(st.integers(1, 60), st.integers(20, 60)))
    near = st.floats(-5, 65) | st.integers(-5, 65)
    numbers = near | near | near | plain
    polygon = st.lists(near, min_size=6, max_size=12).map(lambda p: p[: len(p) // 2 * 2])
    usual = st.lists(polygon, min_size=1, max_size=3)
    polygons = st.lists(polygon | st.lists(numbers, max_size=9) | odd, max_size=3)
    mask = np.asfortranarray(
        draw(st.binary(min_size=1, max_size=40).map(lambda b: _bits(b, height, width)))
    )
    packed = coco.encode(mask)["counts"]
    runs = _runs(mask)
    counts = st.one_of(
        st.just(packed),
        mutated([packed]),
        mutated([packed]).map(lambda b: b.decode("latin1")),
        st.just(runs),
        changed(runs, st.integers(-3, height * width) | odd),
        odd,
    )
    size = st.just([height, width]) | st.just([height, width]) | st.just((height, width)) | odd
    lengths = st.fixed_dictionaries({"size": size, "counts": counts})
    whole = st.sampled_from([packed, packed.decode(), runs])
    right = whole.map(lambda counts: {"size": [height, width], "counts": counts})
    segmentation = draw(usual | usual | polygons | right | lengths | lengths | odd)
    return Input({}, {"size": (height, width), "segmentation": segmentation})


def _bits(data: bytes, height: int, width: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    return np.resize(bits, (height, width))


def _runs(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    changes = np.flatnonzero(np.diff(flat.astype(int)))
    return np.diff([0, *changes.tolist()]).tolist()


def _check_segmentation(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    size, given = about["size"], about["segmentation"]
    try:
        mask = annotation_to_mask(given, size)
    except ValueError as error:
        clear(error)
        return "quarantined"
    assert mask.shape == size and mask.dtype == bool and mask.any()
    if isinstance(given, dict):
        assert np.array_equal(mask, _decoded(given["counts"], size)), "other run lengths"
        return "right"
    # PIL fills by another rule, so masks may differ along the outline and at its thin ends.
    drawn, around = np.zeros(size, bool), np.zeros(size, bool)
    for polygon in given:
        points = [float(v) for v in polygon]
        image, line = (Image.new("1", size[::-1]) for _ in range(2))
        ImageDraw.Draw(image).polygon([v - 0.5 for v in points], fill=1)
        ImageDraw.Draw(line).line([*points, *points[:2]], fill=1, width=5)
        ImageDraw.Draw(line).line([v - 0.5 for v in [*points, *points[:2]]], fill=1, width=5)
        drawn |= np.asarray(image)
        around |= np.asarray(line)
    assert not ((mask ^ drawn) & ~around).any(), "another area than that of the polygon"
    return "right"


def _decoded(counts: Any, size: tuple[int, int]) -> np.ndarray:
    if isinstance(counts, list):
        runs = np.array(counts)
    else:
        text = counts if isinstance(counts, bytes) else counts.encode()
        return coco.decode({"size": list(size), "counts": text}).astype(bool)
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    return values.reshape(size, order="F").astype(bool)


KINDS = {
    "refer": Kind(lambda run: _data_sets(), _check_data_set, 2),
    "segmentation": Kind(lambda run: _segmentations(), _check_segmentation, 1),
}

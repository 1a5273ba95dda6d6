"""Object-centric pictures: folders of classes, ImageNet's mapping, and mini-ImageNet."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from fuzz.boxes import picture, prepare
from fuzz.cases import Content, Folder, Input, Kind, Link, Outcome, Pipe
from fuzz.mutate import mutated, texts
from fuzz.tables import as_csv
from ppt.data.object_centric import SUFFIXES
from ppt.store.nodes import Node

_WNIDS = {"n01440764": "tench", "n01494475": "hammerhead", "n02100001": "small dog"}
_MAPPING = "".join(f"{wnid} {name}, another name\n" for wnid, name in _WNIDS.items()).encode()
_SCENES = "{format: toybox_scenes, num_pictures: 1, seed: 0}"
_SPLITS = [f"data.{name}={_SCENES}" for name in ("referring", "validation", "evaluation")]

_names = st.one_of(
    st.sampled_from([*_WNIDS, "dog", "desk_lamp", "train", "val", "images"]),
    st.sampled_from([".hidden", "._0", "caf\u00e9", "cafe\u0301", "\udce9\udcff", "n99999999"]),
    texts.map(lambda text: text.replace("/", "_")),
)
_contents: st.SearchStrategy[Content] = st.one_of(
    st.integers(0, 5).map(picture),
    st.integers(0, 5).map(picture),
    st.integers(0, 5).map(lambda n: picture(n, "PNG")),
    mutated([picture(0), picture(1, "PNG")]),
    st.sampled_from([b"", b"text", Pipe(), Folder(), Link("/dev/zero"), Link("/nowhere")]),
    st.sampled_from([Link("."), Link(".."), Link("x.jpg")]),
)
_mappings = st.one_of(
    st.just(_MAPPING),
    st.just(b"\xef\xbb\xbf" + _MAPPING),
    st.just(_MAPPING.replace(b"\n", b"\r\n")),
    mutated([_MAPPING]),
    st.lists(st.tuples(_names, texts), max_size=4).map(
        lambda lines: "\n".join(map(" ".join, lines)).encode(errors="replace")
    ),
)


@st.composite
def _image_folders(draw: DrawFn) -> Input:
    base = draw(st.sampled_from(["", "", "train/", "ILSVRC/Data/CLS-LOC/train/"]))
    files: dict[str, Content] = {}
    if draw(st.booleans()):
        files[f"root/{base}dog/1.jpg"] = picture(1)
    for _ in range(draw(st.integers(0, 6))):
        name, suffix = draw(_names), draw(st.sampled_from([*sorted(SUFFIXES), ".JPG", ".txt", ""]))
        files[f"root/{base}{draw(_names)}/{name}{suffix}"] = draw(_contents)
    if draw(st.integers(0, 4)):
        files["root/LOC_synset_mapping.txt"] = draw(st.just(_MAPPING) | _mappings)
    return Input(files, {"base": base})


def _check_image_folder(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    classes = folder / "root" / about["base"]

    def right(nodes: Mapping[str, list[Node]]) -> None:
        (node,) = _object_centric(nodes)
        counts = node.counts()
        # A class of one's own that is called "train" or the like may be the folder of classes.
        if not any((classes / name).exists() for name in ("train", "ILSVRC")) or about["base"]:
            there = _pictures_in(classes)
            assert counts["pictures"]["in"] == there, f"{counts} of {there} pictures"
        for row in node.read_all().to_pylist():
            wnid = row["picture"].partition("/")[0]
            assert row["class_name"].strip() and row["class_name"] == row["class_name"].strip()
            if wnid == "desk_lamp" and not (folder / "root/LOC_synset_mapping.txt").exists():
                assert row["class_name"] == "desk lamp"

    root = folder / "root"
    root.mkdir(exist_ok=True)
    options = f"data.object_centric={{format: imagenet, root: {root}}}"
    return prepare(folder, [*_SPLITS, options], right)  # type: ignore[return-value]


def _object_centric(nodes: Mapping[str, list[Node]]) -> list[Node]:
    """Return the samples that are not the scene of the embedded world."""
    return [
        node
        for node in nodes["samples"]
        if not any(row["picture"].startswith("scene-") for row in node.read_all().to_pylist())
    ]


def _pictures_in(classes: Path) -> int:
    """Count what looks like a picture and is not hidden, without following ppt's own code."""
    count = 0
    with os.scandir(classes) as inner:
        folders = [e for e in inner if not e.name.startswith(".") and _is_folder(e)]
    for entry in folders:
        for name in os.listdir(entry.path):
            suffix = os.path.splitext(name)[1].lower()
            count += not name.startswith(".") and suffix in SUFFIXES
    return count


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISDIR(os.stat(entry.path).st_mode)
    except OSError:
        return False


@st.composite
def _mini_imagenets(draw: DrawFn) -> Input:
    files: dict[str, Content] = {}
    odd = draw(st.booleans())
    for split in ("train", "val", "test"):
        names, labels = [f"{split}{n}.jpg" for n in range(5)], ["dog", "cat", *_WNIDS]
        files |= {f"root/images/{name}": picture(1) for name in names[:4]}
        rows = [
            {
                "filename": draw(st.sampled_from(names) | texts if odd else st.sampled_from(names)),
                "label": draw(st.sampled_from(labels) | texts) if odd else "dog",
            }
            for _ in range(draw(st.integers(0, 3)))
        ]
        data = as_csv(rows, draw(st.sampled_from([["filename", "label"]] * 5 + [["filename"]])))
        files[f"root/{split}.csv"] = draw(mutated([data]) if odd else st.just(data))
    if odd:
        files[draw(st.sampled_from(sorted(files)))] = draw(_contents)
    if draw(st.booleans()):
        files["root/LOC_synset_mapping.txt"] = draw(_mappings)
    return Input(files)


def _check_mini_imagenet(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    def right(nodes: Mapping[str, list[Node]]) -> None:
        (node,) = _object_centric(nodes)
        for row in node.read_all().to_pylist():
            assert row["class_name"].strip()

    options = f"data.object_centric={{format: mini_imagenet, root: {folder / 'root'}}}"
    return prepare(folder, [*_SPLITS, options], right)  # type: ignore[return-value]


KINDS = {
    "imagenet": Kind(lambda run: _image_folders(), _check_image_folder, 1),
    "mini-imagenet": Kind(lambda run: _mini_imagenets(), _check_mini_imagenet, 0.6),
}

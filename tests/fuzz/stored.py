"""The files of a store and of a run's folder, damaged."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import QUICKSTART
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from fuzz.cases import Input, Kind, Outcome, ppt, told
from fuzz.mutate import mutated, texts
from ppt.config import ConfigError, load_curriculum
from ppt.serving.predictor import Predictor
from ppt.serving.stored_checkpoint import open_checkpoint
from ppt.steps.runner import forget_read
from ppt.store.nodes import Node, Store

_FILE = "damaged"


@functools.cache
def _files_of(run: Path) -> dict[str, list[Path]]:
    """The files of a store by the kinds of their nodes and their own."""
    kinds: dict[str, list[Path]] = {"summary": [run / "summary.json"]}
    for path in sorted((run.parent / "store").rglob("*")):
        if path.is_file():
            kinds.setdefault(f"{path.parts[-3]} {path.name[:4]}{path.suffix}", []).append(path)
    return kinds


@st.composite
def _damages(draw: DrawFn, run: Path) -> Input:
    kinds = _files_of(run)
    path = draw(st.sampled_from(kinds[draw(st.sampled_from(sorted(kinds)))]))
    data = path.read_bytes()
    content = draw(
        mutated([data]) | mutated([data]) | st.sampled_from([b"", b"{}", b"null", b"[]"])
    )
    if draw(st.integers(0, 9)) == 0:
        content = draw(texts).encode(errors="replace")
    return Input({_FILE: content}, {"place": str(path.relative_to(run.parent))})


@functools.cache
def _whole(run: Path) -> dict[str, Any]:
    """What is read of each node of the store as it was made."""
    return {
        node.digest: (node.made_from, _content(node))
        for node in Store(str(run.parent)).complete_nodes()
    }


def _content(node: Node) -> list[Any]:
    """Everything that is read of a node."""
    manifest = node.manifest()
    if not (buckets := manifest.get("num_buckets", 0)):
        folder = Path(node.local_folder())
        return [
            manifest["history"],
            *(p.read_bytes() for p in sorted(folder.glob("*.safetensors"))),
        ]
    table = Node(node.store, node.kind, node.digest, {}, buckets)
    names = table.receipt(0)["files"]
    return [table.counts(), *(table.read_all(name) for name in names)]


def _check(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    before = _whole(run)
    store, place = folder / run.parent.name, Path(about["place"])
    shutil.copytree(
        run.parent, store, copy_function=os.link, ignore=shutil.ignore_patterns("mlflow*")
    )
    damaged = store / place
    damaged.unlink()
    shutil.copy(folder / _FILE, damaged)
    is_same = damaged.read_bytes() == (run.parent / place).read_bytes()
    forget_read()
    verified = ppt("verify", str(store))
    assert verified.exit_code in (0, 1), verified.output
    for command in (["show", place.parts[-2][:8], "--store", str(store)], ["gc", str(store)]):
        assert ppt(*command).exit_code in (0, 2)
    if place.name == "summary.json":
        try:
            stored = open_checkpoint(store / run.name)
        except ConfigError as error:
            return told(error)
        assert stored.digest in before
        return "right"
    kind, digest = place.parts[-3:-1]
    node = Node(Store(str(store)), kind, digest, {})
    try:
        if kind == "checkpoints":
            Predictor(open_checkpoint(damaged.parent))
        found = (node.manifest()["made_from"], _content(node))
    except ConfigError as error:
        assert verified.exit_code == 1 or is_same, f"ppt verify finds nothing, but {error}"
        return told(error)
    if found == before[digest]:
        return "right"
    assert verified.exit_code == 1, "other content, and ppt verify finds nothing"
    raise AssertionError("other content is read")


# ---------------------------------------------------------------- places of stores

_SCHEMES = ("", "file://", "memory://", "foo://", "s3://", "gs://", "zip://", "dir://", "tar://")


@st.composite
def _places(draw: DrawFn) -> Input:
    place = draw(st.sampled_from(_SCHEMES)) + draw(
        texts | st.sampled_from(["x", "a/b", "::", "a::b", "x::memory://y", "/dev/null", "/proc/x"])
    )
    return Input({"x": b""}, {"place": place})


def _check_place(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    """Look for a store at a place. What is not absolute lies in the input's folder."""
    place, here = about["place"].replace("\0", ""), os.getcwd()
    os.environ["HOME"] = str(folder)
    os.chdir(folder)
    try:
        for command in (["verify"], ["gc"], ["show", "ab", "--store"]):
            result = ppt(*command, *([] if command[-1] == "--store" else ["--"]), place)
            assert result.exit_code == 2, f"{command}: {result.output}"
        load_curriculum(QUICKSTART, [f"store={place}"])
        Store(place).check()
    except ConfigError as error:
        return told(error)
    finally:
        os.chdir(here)
    return "right"


KINDS = {
    "store-place": Kind(lambda run: _places(), _check_place, 0.5),
    "store": Kind(_damages, _check, 2),
}

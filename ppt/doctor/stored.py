"""The files of a store, compared with the checksums with which they were written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ppt.config import ConfigError
from ppt.store.checksums import Checksum, DamagedFile, is_sealed, verify
from ppt.store.given import instead_of
from ppt.store.nodes import Node, Store

_MANIFEST = "manifest.json"


@dataclass
class Examined:
    """The result of examining the folder of a node."""

    kind: str
    is_finished: bool
    num_files: int = 0
    num_unchecked: int = 0  # files without a checksum
    num_leftovers: int = 0  # temporary files of a crash
    damage: list[str] = field(default_factory=list)  # a line for each damaged file


def examine_store(store: Store) -> Iterator[Examined]:
    """Yield what is found in each folder of a store. Nothing is changed.

    Raises ConfigError if there is no store.
    """
    store.fs.invalidate_cache()
    if not store.check():
        told = instead_of("store", store.root) or ": give the `store` of a curriculum"
        raise ConfigError(f"no store at {store.root!r}{told}")
    for folder in _folders(store, "store", "*", "*"):
        kind, digest = folder.split("/")[-2:]
        yield _examine_node(Node(store, kind, digest, {}))


def _folders(store: Store, kind: str, *pattern: str) -> list[str]:
    """Return the folders below a folder of the store that match a pattern of names, in order."""
    found = [f"{store.path}/{kind}"]
    for names in pattern:
        wanted = re.compile(names.replace("*", ".*"))
        listed = [
            info for folder in found if store.fs.isdir(folder) for info in _list(store, folder)
        ]
        found = [
            info["name"]
            for info in listed
            if info["type"] == "directory" and wanted.fullmatch(info["name"].rsplit("/", 1)[-1])
        ]
    return sorted(found)


def _list(store: Store, folder: str) -> list[dict[str, str]]:
    return store.fs.ls(folder, detail=True)


def _examine_node(node: Node) -> Examined:
    sizes = node.sizes()
    found = Examined(node.kind, is_finished=_MANIFEST in sizes)
    found.num_leftovers = sum(name.startswith(".") for name in sizes)
    receipts = {int(n[7:-5]): n for n in sizes if re.fullmatch(r"bucket-\d{5,}\.json", n)}
    num_buckets = 0
    if found.is_finished and (manifest := _json(found, node, _MANIFEST)):
        num_buckets = manifest.get("num_buckets", 0)
        _examine_files(found, node, sizes, manifest.get("checksums", {}))
        if not receipts and not num_buckets and "checksums" not in manifest:
            others = [n for n in sizes if not n.startswith((".", "epoch-")) and n != _MANIFEST]
            _examine_files(found, node, sizes, dict.fromkeys(others))
    for name in sizes:
        if name.startswith("epoch-"):
            _json(found, node, name)
    for bucket in sorted({*receipts, *range(num_buckets)}):
        try:
            receipt = node.receipt(bucket)
        except DamagedFile as damage:
            found.num_files += 1
            found.damage.append(str(damage))
            continue
        _json(found, node, receipts[bucket], bucket)
        checksums = receipt.get("checksums", {})
        expected = {name: checksums.get(name) for name in receipt["files"].values()}
        _examine_files(found, node, sizes, expected, bucket)
    return found


def _json(found: Examined, node: Node, name: str, bucket: int | None = None) -> dict | None:
    """Count and check a JSON file of a node, and return its content if it is whole."""
    found.num_files += 1
    try:
        content = node.manifest() if name == _MANIFEST else node.read_json(name, bucket)
    except DamagedFile as damage:
        found.damage.append(str(damage))
        return None
    found.num_unchecked += not is_sealed(node.store.fs.cat_file(node.path(name)))
    return content


def _examine_files(
    found: Examined,
    node: Node,
    sizes: dict[str, int],
    expected: dict[str, Checksum | None],
    bucket: int | None = None,
) -> None:
    """Count and check files of a node."""
    for name, checksum in expected.items():
        found.num_files += 1
        if name not in sizes:
            found.damage.append(str(node.damaged(name, "is missing", bucket)))
        elif checksum is None:
            found.num_unchecked += 1
        elif fault := verify(node.store.fs, node.path(name), checksum):
            found.damage.append(str(node.damaged(name, fault, bucket)))

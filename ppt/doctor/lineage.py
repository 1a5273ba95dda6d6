"""From what a node of the store was made, back to the raw files and the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ppt.config import ConfigError
from ppt.store.checksums import DamagedFile
from ppt.store.given import instead_of
from ppt.store.nodes import Node, Store


@dataclass
class Ancestor:
    """A node of the store and the nodes that it was made from."""

    kind: str
    digest: str
    num_bytes: int = 0
    version: int | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)  # the data set that samples are read from
    num_buckets: int = 0
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    fault: str | None = None  # why the rest is not known
    is_repeated: bool = False  # it stands elsewhere with its own parents
    parents: dict[str, Ancestor] = field(default_factory=dict)  # by role


def lineage(store: Store, prefix: str) -> Ancestor:
    """Return the node whose digest begins with `prefix`, with all that it was made from.

    Raises ConfigError if there is no such node, or if there are several.
    """
    kinds = kinds_of(store)
    found = [digest for digest in kinds if prefix and digest.startswith(prefix.lower())]
    if not found:
        raise ConfigError(f"digest: no node of {store.root!r} begins with {prefix!r}")
    if len(found) > 1:
        some = ", ".join(f"{digest} ({kinds[digest]})" for digest in found[:5])
        raise ConfigError(f"digest: {len(found)} nodes begin with {prefix!r}: {some}; give more")
    return _ancestor(store, found[0], kinds, set())


def kinds_of(store: Store) -> dict[str, str]:
    """Return the kind of each node of a store by its digest. Raises ConfigError without a store."""
    store.fs.invalidate_cache()
    root = f"{store.path}/store"
    if not store.check():
        told = instead_of("store", store.root) or ": give the `store` of a curriculum"
        raise ConfigError(f"no store at {store.root!r}{told}")
    return {
        _name(folder): _name(kind)
        for kind in sorted(store.fs.ls(root, detail=False))
        if store.fs.isdir(kind)
        for folder in sorted(store.fs.ls(kind, detail=False))
        if store.fs.isdir(folder)
    }


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _ancestor(store: Store, digest: str, kinds: Mapping[str, str], seen: set[str]) -> Ancestor:
    if digest not in kinds:
        return Ancestor("a node", digest, fault="it is not in the store any more")
    node = Node(store, kinds[digest], digest, {})
    sizes = node.sizes()
    found = Ancestor(node.kind, digest, sum(sizes.values()), is_repeated=digest in seen)
    if found.is_repeated:
        return found
    seen.add(digest)
    if "manifest.json" not in sizes:
        found.fault = "unfinished: what it is made of is written when it is complete"
        return found
    try:
        manifest = node.manifest()
        made_from = manifest["made_from"]
        found.version, found.spec = made_from["version"], made_from["spec"]
        parents = dict(made_from["parents"])
    except DamagedFile as damage:
        found.fault = str(damage)
        return found
    found.data = manifest.get("data", {})
    found.num_buckets, found.counts = manifest.get("num_buckets", 0), manifest.get("counts", {})
    for role, parent in parents.items():
        found.parents[role] = _ancestor(store, parent, kinds, seen)
    return found

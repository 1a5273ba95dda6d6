"""The store of tables and checkpoints, in folders named by a digest of what they are made from.

A `Node` is one stored table or checkpoint. Its digest covers its kind, the part of the
configuration that matters for it, the digests of its parents and the format version. A second run
with the same inputs therefore finds the results of the first one.

The node of a table is split into buckets. A bucket is complete when its receipt exists with all the
files that the receipt names. A node is complete when its manifest exists and every bucket is
complete. Every file is written under a temporary name and then renamed, so no file is ever
incomplete. The root of the store is a local folder or any fsspec URL.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from ppt.store.schema import FORMAT_VERSION

DATA, QUARANTINE, LABELS = "data", "quarantine", "labels"
"""The names of the tables inside a node."""


def digest_of(value: Any) -> str:
    """Return a digest of 16 hexadecimal digits of a JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bucket_of(key: str, num_buckets: int) -> int:
    """Return the bucket of a picture's key or of a text, which is the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % num_buckets


@dataclass(frozen=True)
class Count:
    """The numbers of items that went into a step, came out of it and were quarantined."""

    into: int = 0
    out: int = 0
    quarantined: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.into + other.into, self.out + other.out, self.quarantined + other.quarantined
        )

    def as_dict(self) -> dict[str, int]:
        """Return the numbers as they are written to receipts."""
        return {"in": self.into, "out": self.out, "quarantined": self.quarantined}


@dataclass
class BucketOutput:
    """The output of a step for one bucket."""

    tables: dict[str, pa.Table]  # by name
    counts: dict[str, Count] = field(default_factory=dict)  # by unit, for example "pictures"
    info: dict[str, int] = field(default_factory=dict)  # further sums, such as encoder_calls


@dataclass(frozen=True)
class Store:
    """The folder of all nodes; `root` is a local folder or an fsspec URL."""

    root: str

    @cached_property
    def _resolved(self) -> tuple[Any, str]:
        fs, path = fsspec.core.url_to_fs(self.root)
        if isinstance(fs, LocalFileSystem):
            path = os.path.abspath(path)
        return fs, path

    @property
    def fs(self) -> Any:
        """The fsspec filesystem of the root."""
        return self._resolved[0]

    @property
    def path(self) -> str:
        """The path of the root within its filesystem; an absolute path if it is local."""
        return self._resolved[1]

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine's filesystem."""
        return isinstance(self.fs, LocalFileSystem)

    def arrow_filesystem(self) -> pa.fs.FileSystem:
        """Return the filesystem in pyarrow's form, for libraries that need it."""
        if self.is_local:
            return pa.fs.LocalFileSystem()
        return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(self.fs))

    def node(
        self,
        kind: str,
        spec: Any,
        parents: Mapping[str, Node] | None = None,
        *,
        version: int = 1,
        buckets: int = 0,
    ) -> Node:
        """Return the node of the given inputs; nothing is written.

        All arguments but `buckets`, and `FORMAT_VERSION`, are part of the node's digest.

        Args:
            kind: the kind of the node, such as "features" or "checkpoints".
            spec: the configuration that the content depends on.
            parents: the nodes from which the content is made, by name.
            version: the version of the code that makes the content.
            buckets: the number of buckets, or 0 for a checkpoint.
        """
        lineage = {name: parent.digest for name, parent in sorted((parents or {}).items())}
        made_from = {
            "kind": kind,
            "format": FORMAT_VERSION,
            "version": version,
            "spec": spec,
            "parents": lineage,
        }
        return Node(self, kind, digest_of(made_from), made_from, buckets)

    def complete_nodes(self) -> list[Node]:
        """Return the nodes that have a manifest, with what they are made from."""
        self.fs.invalidate_cache()
        found = []
        for path in self.fs.glob(f"{glob.escape(self.path)}/store/*/*/manifest.json"):
            kind, digest = path.split("/")[-3:-1]
            with self.fs.open(path, "rb") as file:
                manifest = json.load(file)
            found.append(Node(self, kind, digest, manifest["made_from"]))
        return found


@dataclass(frozen=True)
class Node:
    """A stored table, which has one or more buckets, or a stored checkpoint, which has none."""

    store: Store
    kind: str
    digest: str
    made_from: Mapping[str, Any] = field(hash=False, compare=False)  # covered by the digest
    num_buckets: int = 0

    # ------------------------------------------------------------ names

    @property
    def folder(self) -> str:
        """The node's folder within the filesystem of the store."""
        return f"{self.store.path}/store/{self.kind}/{self.digest}"

    def path(self, name: str) -> str:
        """Return the path of a file of the node."""
        return f"{self.folder}/{name}"

    def _names(self) -> set[str]:
        """Return the names of the files in the node's folder."""
        fs = self.store.fs
        fs.invalidate_cache(self.folder)
        if not fs.exists(self.folder):
            return set()
        return {path.rsplit("/", 1)[-1] for path in fs.ls(self.folder, detail=False)}

    # ------------------------------------------------------------ completeness

    def is_complete(self) -> bool:
        """Return whether the manifest and all buckets exist."""
        return "manifest.json" in self._names() and not self.missing_buckets()

    def missing_buckets(self) -> list[int]:
        """Return the buckets whose receipt, or a file named by it, does not exist."""
        names = self._names()
        return [b for b in range(self.num_buckets) if not self._has_bucket(b, names)]

    def _has_bucket(self, bucket: int, names: set[str]) -> bool:
        if _receipt_name(bucket) not in names:
            return False
        return set(self._receipt(bucket)["files"].values()) <= names

    def _receipt(self, bucket: int) -> dict[str, Any]:
        return self.read_json(_receipt_name(bucket))

    # ------------------------------------------------------------ writing

    def remove(self) -> None:
        """Delete the node's folder, beginning with the manifest.

        An interrupted removal thus leaves a node that is not complete.
        """
        fs = self.store.fs
        fs.invalidate_cache(self.folder)
        if fs.exists(self.path("manifest.json")):
            fs.rm(self.path("manifest.json"))
        if fs.exists(self.folder):
            fs.rm(self.folder, recursive=True)

    def write_bucket(self, bucket: int, output: BucketOutput) -> None:
        """Write the tables of a bucket and then its receipt, which makes the bucket complete."""
        files = {}
        for name, table in output.tables.items():
            # Features are read row by row through memory maps, which needs Arrow files.
            extension = "arrow" if self.kind in ("features", "words", "phrases") else "parquet"
            files[name] = f"{name}-{bucket:05d}.{extension}"
            self.write_bytes(files[name], _serialise(table, extension))
        receipt = {
            "files": files,
            "counts": {unit: count.as_dict() for unit, count in output.counts.items()},
            "info": output.info,
        }
        self.write_json(_receipt_name(bucket), receipt)

    def write_manifest(self, **facts: Any) -> None:
        """Write the manifest, which makes the node complete.

        It holds what the node is made from, the sums over its buckets and the given facts.
        """
        manifest = {"digest": self.digest, "made_from": self.made_from, **facts}
        if self.num_buckets:
            manifest |= {"counts": self.counts(), "info": self.info()}
        self.write_json("manifest.json", manifest)

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as a JSON file."""
        self.write_bytes(name, json.dumps(value, indent=2, default=str).encode())

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file under a temporary name and rename it."""
        fs = self.store.fs
        fs.makedirs(self.folder, exist_ok=True)
        temporary = self.path(f".{name}.{uuid.uuid4().hex[:8]}")
        with fs.open(temporary, "wb") as file:
            file.write(data)
        if self.store.is_local:
            os.replace(temporary, self.path(name))  # atomic, which fsspec's move is not
        else:
            fs.mv(temporary, self.path(name))

    # ------------------------------------------------------------ reading

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file."""
        with self.store.fs.open(self.path(name), "rb") as file:
            return json.load(file)

    def manifest(self) -> dict[str, Any]:
        """Return the content of the manifest."""
        return self.read_json("manifest.json")

    def read(
        self, bucket: int, table: str = DATA, columns: Iterable[str] | None = None
    ) -> pa.Table:
        """Return one bucket of a table.

        Arrow files are memory-mapped; those of a remote store are first copied to local disk.

        Args:
            bucket: the number of the bucket.
            table: the name of the table.
            columns: the names of the columns to read, by default all.
        """
        name = self._receipt(bucket)["files"][table]
        if name.endswith(".arrow"):
            mapped = pa.ipc.open_file(pa.memory_map(self.local_path(name))).read_all()
            return mapped.select(list(columns)) if columns else mapped
        with self.store.fs.open(self.path(name), "rb") as file:
            return pq.read_table(file, columns=list(columns) if columns else None)

    def read_all(self, table: str = DATA, columns: Iterable[str] | None = None) -> pa.Table:
        """Return all buckets of a table as one, in order.

        All rows are held in memory, so this is meant for small columns only.
        """
        columns = list(columns) if columns else None
        return pa.concat_tables(self.read(b, table, columns) for b in range(self.num_buckets))

    def local_path(self, name: str) -> str:
        """Return a local path of a file; a file of a remote store is copied there once.

        The copies lie in a folder for each making of the node, known by its manifest, so that a
        node that was made anew is copied anew.
        """
        if self.store.is_local:
            return self.path(name)
        made = digest_of(self.store.fs.ukey(self.path("manifest.json")))
        cache = os.path.join(tempfile.gettempdir(), "ppt-cache", self.kind, self.digest, made)
        local = os.path.join(cache, name)
        if not os.path.exists(local):
            os.makedirs(cache, exist_ok=True)
            temporary = f"{local}.{uuid.uuid4().hex[:8]}"
            self.store.fs.get(self.path(name), temporary)
            os.replace(temporary, local)
        return local

    def local_folder(self) -> str:
        """Return a local folder that holds all files of a checkpoint."""
        for name in self._names():
            self.local_path(name)
        return os.path.dirname(self.local_path("manifest.json"))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the counts by unit, summed over the buckets."""
        return _sum(self._receipt(b)["counts"] for b in range(self.num_buckets))

    def info(self) -> dict[str, int]:
        """Return the `info` of the buckets, summed over the buckets."""
        return _sum({"info": self._receipt(b)["info"]} for b in range(self.num_buckets)).get(
            "info", {}
        )

    def quarantine(self) -> pa.Table:
        """Return all quarantined rows of the node."""
        return self.read_all(QUARANTINE)


def _receipt_name(bucket: int) -> str:
    return f"bucket-{bucket:05d}.json"


def _serialise(table: pa.Table, extension: str) -> pa.Buffer:
    """Return the bytes of a table as a Parquet file, or as an Arrow file of one chunk."""
    sink = pa.BufferOutputStream()
    if extension == "parquet":
        pq.write_table(table, sink)
    else:
        table = table.combine_chunks()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def _sum(groups: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Add up numbers that have the same two keys."""
    total: dict[str, dict[str, int]] = {}
    for group in groups:
        for unit, numbers in group.items():
            for key, number in numbers.items():
                sums = total.setdefault(unit, {})
                sums[key] = sums.get(key, 0) + number
    return total

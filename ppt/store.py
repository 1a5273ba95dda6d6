"""Where tables and checkpoints live: folders named by a digest of what they were made from.

A `Node` is one stored thing. Its digest covers its kind, the configuration that matters, its
parents' digests and the format version, so running again finds what is there. A table's node is
split into buckets; a bucket is complete when its receipt and the files it names are there, a node
when its manifest and every bucket are. Every file is written under another name and renamed: it is
there whole or not at all. The root is a local folder or any fsspec URL.
"""

from __future__ import annotations

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

from ppt.schema import FORMAT_VERSION

DATA, QUARANTINE, LABELS = "data", "quarantine", "labels"
"""The names of tables inside a node."""


def digest_of(value: Any) -> str:
    """16 hexadecimal digits that name a JSON-like value; equal values give equal digests."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bucket_of(key: str, num_buckets: int) -> int:
    """The bucket of a picture's key (or of a text); the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % num_buckets


@dataclass(frozen=True)
class Count:
    """How many went into a step, came out, and were quarantined."""

    into: int = 0
    out: int = 0
    quarantined: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.into + other.into, self.out + other.out, self.quarantined + other.quarantined
        )

    def as_dict(self) -> dict[str, int]:
        return {"in": self.into, "out": self.out, "quarantined": self.quarantined}


@dataclass
class BucketOutput:
    """What a pass makes of one bucket: tables by name, and counts by unit (pictures, ...)."""

    tables: dict[str, pa.Table]
    counts: dict[str, Count] = field(default_factory=dict)
    info: dict[str, int] = field(default_factory=dict)  # plain sums, e.g. encoder_calls


@dataclass(frozen=True)
class Store:
    """The root of all nodes: a local folder or an fsspec URL."""

    root: str

    @cached_property
    def _resolved(self) -> tuple[Any, str]:
        fs, path = fsspec.core.url_to_fs(self.root)
        if isinstance(fs, LocalFileSystem):
            path = os.path.abspath(path)
        return fs, path

    @property
    def fs(self) -> Any:
        return self._resolved[0]

    @property
    def path(self) -> str:
        return self._resolved[1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def arrow_filesystem(self) -> pa.fs.FileSystem:
        """The same filesystem for libraries that take pyarrow's."""
        if self.is_local:
            return pa.fs.LocalFileSystem()
        return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(self.fs))

    def node(
        self, kind: str, spec: Any, parents: Mapping[str, Node] | None = None, *, buckets: int = 0
    ) -> Node:
        """The node that `spec` and `parents` name; nothing is written yet."""
        lineage = {name: parent.digest for name, parent in sorted((parents or {}).items())}
        made_from = {"kind": kind, "version": FORMAT_VERSION, "spec": spec, "parents": lineage}
        return Node(self, kind, digest_of(made_from), made_from, buckets)


@dataclass(frozen=True)
class Node:
    """One stored table (with `num_buckets` > 0) or checkpoint (0)."""

    store: Store
    kind: str
    digest: str
    made_from: Mapping[str, Any] = field(hash=False, compare=False)  # the digest covers it
    num_buckets: int = 0

    # ------------------------------------------------------------ names

    @property
    def folder(self) -> str:
        return f"{self.store.path}/store/{self.kind}/{self.digest}"

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _names(self) -> set[str]:
        fs = self.store.fs
        fs.invalidate_cache(self.folder)
        if not fs.exists(self.folder):
            return set()
        return {path.rsplit("/", 1)[-1] for path in fs.ls(self.folder, detail=False)}

    # ------------------------------------------------------------ completeness

    def is_complete(self) -> bool:
        return "manifest.json" in self._names() and not self.missing_buckets()

    def missing_buckets(self) -> list[int]:
        """Buckets whose receipt, or a file that the receipt names, is not there."""
        names = self._names()
        return [b for b in range(self.num_buckets) if not self._has_bucket(b, names)]

    def _has_bucket(self, bucket: int, names: set[str]) -> bool:
        if _receipt_name(bucket) not in names:
            return False
        return set(self._receipt(bucket)["files"].values()) <= names

    def _receipt(self, bucket: int) -> dict[str, Any]:
        return self.read_json(_receipt_name(bucket))

    # ------------------------------------------------------------ writing

    def write_bucket(self, bucket: int, output: BucketOutput) -> None:
        """Write a bucket whole: its tables first, then the receipt that makes it count."""
        files = {}
        for name, table in output.tables.items():
            # Features are read row by row through memory maps, hence Arrow; the rest is Parquet.
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
        """Declare the node complete. The manifest holds its lineage and the sums of its buckets."""
        manifest = {"digest": self.digest, "made_from": self.made_from, **facts}
        if self.num_buckets:
            manifest |= {"counts": self.counts(), "info": self.info()}
        self.write_json("manifest.json", manifest)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=2, default=str).encode())

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        fs = self.store.fs
        fs.makedirs(self.folder, exist_ok=True)
        temporary = self.path(f".{name}.{uuid.uuid4().hex[:8]}")
        with fs.open(temporary, "wb") as file:
            file.write(data)
        if self.store.is_local:
            os.replace(temporary, self.path(name))  # atomic, unlike fsspec's move
        else:
            fs.mv(temporary, self.path(name))

    # ------------------------------------------------------------ reading

    def read_json(self, name: str) -> Any:
        with self.store.fs.open(self.path(name), "rb") as file:
            return json.load(file)

    def manifest(self) -> dict[str, Any]:
        return self.read_json("manifest.json")

    def read(
        self, bucket: int, table: str = DATA, columns: Iterable[str] | None = None
    ) -> pa.Table:
        """One bucket of a table; Arrow files are memory-mapped (copied to local disk once)."""
        name = self._receipt(bucket)["files"][table]
        if name.endswith(".arrow"):
            mapped = pa.ipc.open_file(pa.memory_map(self.local_path(name))).read_all()
            return mapped.select(list(columns)) if columns else mapped
        with self.store.fs.open(self.path(name), "rb") as file:
            return pq.read_table(file, columns=list(columns) if columns else None)

    def read_all(self, table: str = DATA, columns: Iterable[str] | None = None) -> pa.Table:
        """All buckets in order. For small columns only: this is not bounded in memory."""
        columns = list(columns) if columns else None
        return pa.concat_tables(self.read(b, table, columns) for b in range(self.num_buckets))

    def local_path(self, name: str) -> str:
        """A path that can be opened with the operating system's own calls."""
        if self.store.is_local:
            return self.path(name)
        cache = os.path.join(tempfile.gettempdir(), "ppt-cache", self.kind, self.digest)
        local = os.path.join(cache, name)
        if not os.path.exists(local):
            os.makedirs(cache, exist_ok=True)
            temporary = f"{local}.{uuid.uuid4().hex[:8]}"
            self.store.fs.get(self.path(name), temporary)
            os.replace(temporary, local)
        return local

    def local_folder(self) -> str:
        """A local folder with every file of a checkpoint's node."""
        for name in self._names():
            self.local_path(name)
        return os.path.dirname(self.local_path("manifest.json"))

    def counts(self) -> dict[str, dict[str, int]]:
        """Counts by unit, summed over the buckets."""
        return _sum(self._receipt(b)["counts"] for b in range(self.num_buckets))

    def info(self) -> dict[str, int]:
        """The plain sums of the buckets' `info`."""
        return _sum({"info": self._receipt(b)["info"]} for b in range(self.num_buckets)).get(
            "info", {}
        )

    def quarantine(self) -> pa.Table:
        """Every quarantined row of the node."""
        return self.read_all(QUARANTINE)


def _receipt_name(bucket: int) -> str:
    return f"bucket-{bucket:05d}.json"


def _serialise(table: pa.Table, extension: str) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    if extension == "parquet":
        pq.write_table(table, sink)
    else:
        table = table.combine_chunks()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def _sum(groups: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for group in groups:
        for unit, numbers in group.items():
            for key, number in numbers.items():
                sums = total.setdefault(unit, {})
                sums[key] = sums.get(key, 0) + number
    return total

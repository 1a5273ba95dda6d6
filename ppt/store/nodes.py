"""The store of tables and checkpoints, in folders named by a digest of what they are made from.

A `Node` is one stored table or checkpoint. Its digest covers its kind, the part of the
configuration that matters for it, the digests of its parents and the format version. A second run
with the same inputs therefore finds the results of the first one.

The node of a table is split into buckets. A bucket is complete when its receipt exists with all the
files that the receipt names. A node is complete when its manifest exists and every bucket is
complete. Every file is written under a temporary name and then renamed, so no file is ever
incomplete. The root of the store is a local folder or any fsspec URL.

The receipt of a bucket and the manifest of a checkpoint hold the sizes and checksums of their files
(`ppt.store.checksums`). Sizes are compared whenever it is asked what is complete, and a file's
checksum when a process first reads it. A damaged bucket counts as missing.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from ppt.config import ConfigError
from ppt.store.checksums import (
    Checksum,
    DamagedFile,
    SummedFile,
    cannot_read,
    checksum_of,
    is_verified,
    read_verified,
    seal,
    unseal,
    verify,
)
from ppt.store.disk import replacing
from ppt.store.mapped import MappedTable
from ppt.store.schema import FORMAT_VERSION

DATA, QUARANTINE, LABELS, TARGETS = "data", "quarantine", "labels", "targets"
"""The names of the tables inside a node."""

_MANIFEST = "manifest.json"
_OF_MANIFESTS = ("digest", "made_from")
_OF_RECEIPTS = ("files", "counts", "info")
"""The keys that every manifest and every receipt has."""


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
    """The output of a step for one bucket.

    A table that is large is given as a reader, which makes its rows part by part as they are
    written; a file of it is an Arrow file.
    """

    tables: dict[str, pa.Table | pa.RecordBatchReader]  # by name
    counts: dict[str, Count] = field(default_factory=dict)  # by unit, for example "pictures"
    info: dict[str, int] = field(default_factory=dict)  # further sums, such as rows by source


@dataclass(frozen=True)
class Store:
    """The folder of all nodes; `root` is a local folder or an fsspec URL."""

    root: str

    @cached_property
    def _resolved(self) -> tuple[Any, str]:
        try:
            fs, path = fsspec.core.url_to_fs(self.root)
        except Exception as error:  # whatever the filesystem of a URL raises
            raise self._cannot_open(error) from error
        if isinstance(fs, LocalFileSystem):
            path = os.path.abspath(path)
        return fs, path

    def _cannot_open(self, error: Exception) -> ConfigError:
        told = " ".join(str(error).split()) or type(error).__name__
        return ConfigError(f"store: {self.root!r} cannot be opened: {told}")

    def check(self) -> bool:
        """Return whether there is a store. Raises ConfigError if nobody can know."""
        try:
            return self.fs.isdir(f"{self.path}/store")
        except ConfigError:
            raise
        except Exception as error:  # whatever the filesystem of a URL raises
            raise self._cannot_open(error) from error

    @property
    def fs(self) -> Any:
        """The fsspec filesystem of the root. Raises ConfigError if it cannot be opened."""
        return self._resolved[0]

    @property
    def path(self) -> str:
        """The path of the root within its filesystem; an absolute path if it is local."""
        return self._resolved[1]

    @property
    def is_local(self) -> bool:
        """True if the root is a folder of this machine's filesystem."""
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
        """Return the nodes that have a manifest, with what they are made from.

        Raises DamagedFile if it cannot be read from a manifest.
        """
        self.fs.invalidate_cache()
        found = []
        for path in self.fs.glob(f"{glob.escape(self.path)}/store/*/*/manifest.json"):
            kind, digest = path.split("/")[-3:-1]
            made_from = Node(self, kind, digest, {}).manifest()["made_from"]
            found.append(Node(self, kind, digest, made_from))
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

    def sizes(self) -> dict[str, int]:
        """Return the sizes of the files in the node's folder, by name."""
        fs = self.store.fs
        fs.invalidate_cache(self.folder)
        if not fs.exists(self.folder):
            return {}
        listed = fs.ls(self.folder, detail=True)
        return {info["name"].rsplit("/", 1)[-1]: info["size"] for info in listed}

    # ------------------------------------------------------------ completeness

    def is_complete(self) -> bool:
        """Return whether the manifest and all buckets, or all files of a checkpoint, exist.

        A damaged manifest of a table counts as missing: it is written again from the receipts.
        Raises DamagedFile for a damaged checkpoint, which would take hours to make again.
        """
        sizes = self.sizes()
        if _MANIFEST not in sizes:
            return False
        try:
            manifest = self.manifest()
        except DamagedFile:
            if self.num_buckets:
                return False
            raise
        if self.num_buckets:
            return not self.missing_buckets()
        for name, expected in manifest.get("checksums", {}).items():
            if fault := _fault_of_size(name, sizes, expected):
                raise self.damaged(name, fault)
        return True

    def missing_buckets(self) -> list[int]:
        """Return the buckets that are to be made: those without a receipt, and damaged ones."""
        sizes = self.sizes()
        return [
            b
            for b in range(self.num_buckets)
            if _receipt_name(b) not in sizes or self._damage_of(b, sizes)
        ]

    def damage(self) -> list[DamagedFile]:
        """Return what is wrong with the buckets that have a receipt, as far as sizes show it."""
        sizes = self.sizes()
        buckets = [b for b in range(self.num_buckets) if _receipt_name(b) in sizes]
        return [damage for b in buckets if (damage := self._damage_of(b, sizes))]

    def _damage_of(self, bucket: int, sizes: Mapping[str, int]) -> DamagedFile | None:
        try:
            receipt = self.receipt(bucket)
        except DamagedFile as damage:
            return damage
        for name in receipt["files"].values():
            expected = receipt.get("checksums", {}).get(name)
            if fault := _fault_of_size(name, sizes, expected):
                return self.damaged(name, fault, bucket)
        return None

    def damaged(self, name: str, fault: str, bucket: int | None = None) -> DamagedFile:
        """Return the error for a file of the node; `bucket` is that of the file."""
        if bucket is not None:
            todo = f"remove it and run the command again, which makes bucket {bucket} anew"
        elif name.startswith("epoch-"):
            todo = "it only tells when an epoch was trained, remove it"
        else:
            todo = f"remove {self.folder} and run the command again, which makes it anew"
        path = self.path(name)
        return DamagedFile(f"{path} of {self.kind} {fault}: {todo}", self.digest, bucket)

    def receipt(self, bucket: int) -> dict[str, Any]:
        """Return the receipt of a bucket. Raises DamagedFile."""
        return self._read_keys(_receipt_name(bucket), _OF_RECEIPTS, bucket)

    # ------------------------------------------------------------ writing

    def remove(self) -> None:
        """Delete the node's folder, beginning with the manifest.

        An interrupted removal thus leaves a node that is not complete.
        """
        fs = self.store.fs
        fs.invalidate_cache(self.folder)
        if fs.exists(self.path(_MANIFEST)):
            fs.rm(self.path(_MANIFEST))
        if fs.exists(self.folder):
            fs.rm(self.folder, recursive=True)

    def discard(self, bucket: int) -> None:
        """Delete the receipt of a bucket, which is then missing."""
        with contextlib.suppress(FileNotFoundError):  # another run may have found the damage too
            self.store.fs.rm(self.path(_receipt_name(bucket)))

    def clean(self) -> None:
        """Delete the temporary files that a crash has left; only who makes the node may do so."""
        for name in self.sizes():
            if name.startswith("."):
                self.store.fs.rm(self.path(name))

    def write_bucket(self, bucket: int, output: BucketOutput) -> None:
        """Write the tables of a bucket and then its receipt, which makes the bucket complete."""
        files, checksums = {}, {}
        for name, table in output.tables.items():
            # What is read row by row through memory maps needs Arrow files.
            by_row = self.kind in ("features", "words", "phrases") or name == TARGETS
            if by_row:
                files[name] = f"{name}-{bucket:05d}.arrow"
                checksums[files[name]] = self._write_arrow(files[name], table)
            else:
                files[name] = f"{name}-{bucket:05d}.parquet"
                checksums[files[name]] = self.write_bytes(files[name], _parquet(table))
        receipt = {
            "files": files,
            "checksums": checksums,
            "counts": {unit: count.as_dict() for unit, count in output.counts.items()},
            "info": output.info,
        }
        self.write_json(_receipt_name(bucket), receipt)

    def write_manifest(self, **facts: Any) -> None:
        """Write the manifest, which makes the node complete.

        It holds what the node is made from, the number of its buckets and the sums over them, and
        the given facts. For a checkpoint these are to include the `checksums` of its files.
        """
        manifest = {"digest": self.digest, "made_from": self.made_from, **facts}
        if self.num_buckets:
            sums = {"counts": self.counts(), "info": self.info()}
            manifest |= {"num_buckets": self.num_buckets, **sums}
        self.write_json(_MANIFEST, manifest)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file with its checksum."""
        self.write_bytes(name, seal(content))

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> Checksum:
        """Write a file under a temporary name and rename it. Returns its checksum."""
        if self.store.is_local:
            with self._new_file(name) as file:
                file.write(data)
        else:
            self._put(name, lambda path: self.store.fs.pipe_file(path, bytes(data)))
        return checksum_of(data)

    def _write_arrow(self, name: str, table: pa.Table | pa.RecordBatchReader) -> Checksum:
        """Write an Arrow file like `write_bytes`, with one part of the table in memory at a time.

        Returns its checksum with those of its pieces.
        """
        if self.store.is_local:
            with self._new_file(name) as file:
                return _write_parts(table, file)
        with tempfile.NamedTemporaryFile() as file:
            checksum = _write_parts(table, file)
            file.flush()
            self._put(name, lambda path: self.store.fs.put_file(file.name, path))
            return checksum

    @contextlib.contextmanager
    def _new_file(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file of a local store, which gets its name at the end of the block."""
        os.makedirs(self.folder, exist_ok=True)
        suffix = f".{uuid.uuid4().hex[:8]}"
        with replacing(self.path(name), suffix) as temporary, temporary.open("wb") as file:
            yield file  # fsspec's move is not atomic

    def _put(self, name: str, put: Callable[[str], object]) -> None:
        """Let `put` write a file of a remote store under a temporary name, and rename it."""
        suffix = f".{uuid.uuid4().hex[:8]}"
        self.store.fs.makedirs(self.folder, exist_ok=True)
        try:
            self._put_once(name, suffix, put)
        except FileNotFoundError:  # another run has cleaned the folder meanwhile
            self._put_once(name, suffix, put)

    def _put_once(self, name: str, suffix: str, put: Callable[[str], object]) -> None:
        fs, temporary = self.store.fs, self.path(f".{name}{suffix}")
        try:
            put(temporary)
            fs.mv(temporary, self.path(name))
        except BaseException:
            with contextlib.suppress(Exception):
                fs.rm(temporary)
            raise

    # ------------------------------------------------------------ reading

    def read_json(self, name: str, bucket: int | None = None) -> dict[str, Any]:
        """Return the content of a JSON file. Raises DamagedFile if it is not as it was written."""
        try:
            return unseal(self.store.fs.cat_file(self.path(name)))
        except OSError as error:
            raise self.damaged(name, cannot_read(error), bucket) from error
        except ValueError as error:
            raise self.damaged(name, str(error), bucket) from error

    def _read_keys(self, name: str, keys: Iterable[str], bucket: int | None) -> dict[str, Any]:
        content = self.read_json(name, bucket)
        if missing := [key for key in keys if key not in content]:
            raise self.damaged(name, f"is damaged: it has no {missing[0]!r}", bucket)
        return content

    def manifest(self) -> dict[str, Any]:
        """Return the content of the manifest. Raises DamagedFile."""
        return self._read_keys(_MANIFEST, _OF_MANIFESTS, None)

    def read(
        self, bucket: int, table: str = DATA, columns: Iterable[str] | None = None
    ) -> pa.Table:
        """Return one bucket of a table.

        Arrow files are memory-mapped; those of a remote store are first copied to local disk.

        Args:
            bucket: the number of the bucket.
            table: the name of the table.
            columns: the names of the columns to read, by default all; of a nested column in a
                Parquet file also a part, as in `candidates.list.element.is_referent`.

        Raises:
            DamagedFile: the file is missing or is not as it was written.
        """
        name, expected = self._file_of(bucket, table)
        wanted = list(columns) if columns else None
        try:
            if name.endswith(".arrow"):
                path = self.local_path(name, expected, bucket)
                mapped = pa.ipc.open_file(pa.memory_map(path)).read_all()
                return mapped.select(wanted) if wanted else mapped
            with self._open(name, expected, bucket) as file:
                return pq.ParquetFile(file).read(columns=wanted)
        except OSError as error:
            raise self.damaged(name, cannot_read(error), bucket) from error
        except pa.ArrowException as error:  # a file without a checksum
            fault = f"is damaged: {str(error).splitlines()[0]}"
            raise self.damaged(name, fault, bucket) from error

    def map(self, bucket: int, table: str = DATA) -> MappedTable:
        """Map one bucket of a table of Arrow files into memory; nothing but its keys is read.

        Of a remote store it is copied to local disk first, and then checked whole.

        Raises DamagedFile as `read` does; so does the reading of a row.
        """
        name, expected = self._file_of(bucket, table)
        pieces = expected.get("pieces") if expected and self.store.is_local else None
        try:
            path = self.path(name) if pieces else self.local_path(name, expected, bucket)
            memory = pa.memory_map(path).read_buffer()
            if pieces and (fault := _fault_of_size(name, {name: memory.size}, expected)):
                raise self.damaged(name, fault, bucket)
            return MappedTable(memory, pieces, lambda fault: self.damaged(name, fault, bucket))
        except OSError as error:
            raise self.damaged(name, cannot_read(error), bucket) from error
        except pa.ArrowException as error:
            fault = f"is damaged: {str(error).splitlines()[0]}"
            raise self.damaged(name, fault, bucket) from error

    def _file_of(self, bucket: int, table: str) -> tuple[str, Checksum | None]:
        """Return the name of the file of a bucket of a table, and its checksum if it has one."""
        receipt = self.receipt(bucket)
        name = receipt["files"][table]
        return name, receipt.get("checksums", {}).get(name)

    def _open(self, name: str, expected: Checksum | None, bucket: int) -> IO[bytes]:
        """Open a file, which is read whole and checked when this process has not checked it yet."""
        fs, path = self.store.fs, self.path(name)
        if expected is None or is_verified(fs, path):
            return fs.open(path, "rb")
        data, fault = read_verified(fs, path, expected)
        if fault:
            raise self.damaged(name, fault, bucket)
        return io.BytesIO(data)

    def read_all(self, table: str = DATA, columns: Iterable[str] | None = None) -> pa.Table:
        """Return all buckets of a table as one, in order.

        All rows are held in memory, so this is meant for small columns only.
        """
        columns = list(columns) if columns else None
        return pa.concat_tables(self.read(b, table, columns) for b in range(self.num_buckets))

    def local_path(
        self, name: str, expected: Checksum | None = None, bucket: int | None = None
    ) -> str:
        """Return a local path of a file; a file of a remote store is copied there once.

        The copies lie in a folder for each making of the node, known by its manifest, so that a
        node that was made anew is copied anew. A damaged copy is replaced.

        Args:
            name: the name of the file.
            expected: its checksum, if it is known.
            bucket: the bucket to which it belongs, for the message.

        Raises:
            DamagedFile: the file is not as it was written.
        """
        if self.store.is_local:
            return self._verified(self.path(name), name, expected, bucket)
        made = digest_of(self.store.fs.ukey(self.path(_MANIFEST)))
        cache = os.path.join(tempfile.gettempdir(), "ppt-cache", self.kind, self.digest, made)
        local = os.path.join(cache, name)
        if expected and os.path.exists(local) and verify(LocalFileSystem(), local, expected):
            os.remove(local)
        if not os.path.exists(local):
            os.makedirs(cache, exist_ok=True)
            temporary = f"{local}.{uuid.uuid4().hex[:8]}"
            self.store.fs.get(self.path(name), temporary)
            os.replace(temporary, local)
        return self._verified(local, name, expected, bucket)

    def _verified(
        self, local: str, name: str, expected: Checksum | None, bucket: int | None
    ) -> str:
        """Return the local path of a file after it was checked."""
        if expected and (fault := verify(LocalFileSystem(), local, expected)):
            raise self.damaged(name, fault, bucket)
        return local

    def local_folder(self) -> str:
        """Return a local folder that holds all files of a checkpoint. Raises DamagedFile."""
        checksums = self.manifest().get("checksums", {})
        for name in self.sizes().keys() | checksums.keys():
            if not name.startswith("."):
                self.local_path(name, checksums.get(name))
        return os.path.dirname(self.local_path(_MANIFEST))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the counts by unit, summed over the buckets."""
        return _sum(self.receipt(b)["counts"] for b in range(self.num_buckets))

    def info(self) -> dict[str, int]:
        """Return the `info` of the buckets, summed over the buckets."""
        return _sum({"info": self.receipt(b)["info"]} for b in range(self.num_buckets)).get(
            "info", {}
        )

    def quarantine(self) -> pa.Table:
        """Return all quarantined rows of the node."""
        return self.read_all(QUARANTINE)


def _receipt_name(bucket: int) -> str:
    return f"bucket-{bucket:05d}.json"


def _fault_of_size(name: str, sizes: Mapping[str, int], expected: Checksum | None) -> str | None:
    """Return what the sizes of a node's files show to be wrong with one of them, or None."""
    if name not in sizes:
        return "is missing"
    if expected and sizes[name] != expected["size"]:
        return f"has {sizes[name]} bytes instead of {expected['size']}"
    return None


def _parquet(table: pa.Table) -> pa.Buffer:
    """Return the bytes of a table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue()


def _write_parts(table: pa.Table | pa.RecordBatchReader, file: IO[bytes]) -> Checksum:
    """Write an Arrow file of the parts of a reader, or of a table as one. Returns its checksum.

    A thread writes a part while the reader makes the next one.
    """
    summed = SummedFile(file)
    with pa.ipc.new_file(pa.PythonFile(summed, "w"), table.schema) as writer:
        if isinstance(table, pa.Table):
            writer.write_table(table.combine_chunks())
        else:
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as thread:
                writing: Future[None] | None = None
                for part in table:
                    if writing is not None:
                        writing.result()
                    writing = thread.submit(writer.write_batch, part)
                if writing is not None:
                    writing.result()
    return summed.checksum()


def _sum(groups: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Add up numbers that have the same two keys."""
    total: dict[str, dict[str, int]] = {}
    for group in groups:
        for unit, numbers in group.items():
            for key, number in numbers.items():
                sums = total.setdefault(unit, {})
                sums[key] = sums.get(key, 0) + number
    return total

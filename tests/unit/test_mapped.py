"""Memory-mapped tables: the rows that were written, and no changed byte that goes unnoticed."""

import errno
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ppt.store import checksums, mapped
from ppt.store.arrays import ragged_field, tensor_field, to_ragged, to_tensors
from ppt.store.checksums import DamagedFile
from ppt.store.nodes import BucketOutput, Node, Store

LENGTHS = [3, 0, 5, 1, 2]
VALUES = np.random.default_rng(0).normal(size=(5, 9, 7)).astype(np.float16)
WORDS = np.arange(sum(LENGTHS) * 4, dtype=np.float16).reshape(-1, 4)
SCHEMA = pa.schema([pa.field("key", pa.string()), tensor_field("x", (9, 7)), ragged_field("y", 4)])


def batch(start: int, stop: int) -> pa.RecordBatch:
    """Rows of the table."""
    first, last = sum(LENGTHS[:start]), sum(LENGTHS[:stop])
    arrays = [
        pa.array([f"row {n}" for n in range(start, stop)], pa.string()),
        to_tensors(VALUES[start:stop]),
        to_ragged(WORDS[first:last], LENGTHS[start:stop]),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def node_of(folder: Path, *bounds: int) -> Node:
    """A node with a bucket whose rows come in parts that begin and end at the given numbers."""
    node = Store(str(folder)).node("features", {"parts": bounds}, buckets=1)
    parts = [batch(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    reader = pa.RecordBatchReader.from_batches(SCHEMA, iter(parts))
    node.write_bucket(0, BucketOutput({"data": reader}))
    return node


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checksums, mapped):
        monkeypatch.setattr(module, "PIECE", 64)


def read_all(node: Node) -> None:
    """Read every row, and see that it is what was written."""
    table = node.map(0)
    assert len(table) == 5
    assert table.column("key").to_pylist() == [f"row {n}" for n in range(5)]
    np.testing.assert_array_equal(table.rows("x", [4, 0, 2, 0]), VALUES[[4, 0, 2, 0]])
    for row in range(5):
        np.testing.assert_array_equal(table.row("x", row), VALUES[row])
        start = sum(LENGTHS[:row])
        np.testing.assert_array_equal(table.row("y", row), WORDS[start : start + LENGTHS[row]])


@pytest.mark.parametrize("bounds", [(0, 5), (0, 2, 5), (0, 0, 1, 2, 3, 4, 5)])
def test_rows_of_one_part_and_of_several(tmp_path: Path, bounds: tuple[int, ...]) -> None:
    node = node_of(tmp_path, *bounds)
    read_all(node)
    assert node.read(0).num_rows == 5
    assert node.map(0).rows("x", []).shape == (0, 9, 7)


def test_a_table_without_rows(tmp_path: Path) -> None:
    table = node_of(tmp_path, 0, 0).map(0)
    assert (len(table), table.rows("x", []).shape) == (0, (0, 9, 7))


def test_every_changed_bit_is_told(tmp_path: Path, small_pieces: None) -> None:
    node = node_of(tmp_path, 0, 2, 5)
    path = Path(node.path(node.receipt(0)["files"]["data"]))
    whole, rng = path.read_bytes(), random.Random(0)
    for place in [*range(0, len(whole), 37), *range(len(whole) - 64, len(whole))]:
        content = bytearray(whole)
        content[place] ^= 1 << rng.randrange(8)
        path.unlink()  # a file that is mapped must not change
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match=f"{path} of features is damaged: .*bucket 0 anew"):
            read_all(node)
    path.unlink()
    path.write_bytes(whole[:-1])
    with pytest.raises(DamagedFile, match="bytes instead of"):
        node.map(0)
    path.write_bytes(whole)
    read_all(node)


def test_only_what_is_read_is_checked(tmp_path: Path, small_pieces: None) -> None:
    """A row is not delayed by the others: damage elsewhere is told when it is read."""
    node = node_of(tmp_path, 0, 2, 5)
    path = Path(node.path(node.receipt(0)["files"]["data"]))
    content = bytearray(path.read_bytes())
    content[content.index(VALUES[4].tobytes()) + 50] ^= 1
    path.unlink()
    path.write_bytes(content)
    table = node.map(0)
    for row in range(3):
        np.testing.assert_array_equal(table.row("x", row), VALUES[row])
    for read in (lambda: table.row("x", 4), lambda: table.rows("x", [4])):
        with pytest.raises(DamagedFile):
            read()


def test_what_fails_while_rows_are_made_is_raised_and_leaves_no_file(tmp_path: Path) -> None:
    node = Store(str(tmp_path)).node("features", {}, buckets=1)

    def parts() -> Iterator[pa.RecordBatch]:
        yield batch(0, 2)
        raise FloatingPointError("of the encoder")

    reader = pa.RecordBatchReader.from_batches(SCHEMA, parts())
    with pytest.raises(FloatingPointError, match="of the encoder"):
        node.write_bucket(0, BucketOutput({"data": reader}))
    assert os.listdir(node.folder) == []
    assert node.missing_buckets() == [0]


def test_a_file_is_written_part_by_part(tmp_path: Path) -> None:
    """When a part is made, those before are in the file; the last of them may still be written."""
    node, sizes = Store(str(tmp_path)).node("features", {}, buckets=1), list[int]()
    schema = pa.schema([tensor_field("x", (100, 100))])

    def parts() -> Iterator[pa.RecordBatch]:
        for _ in range(5):
            array = to_tensors(np.zeros((1, 100, 100), np.float16))
            yield pa.RecordBatch.from_arrays([array], schema=schema)
            sizes.append(sum(path.stat().st_size for path in Path(node.folder).iterdir()))

    reader = pa.RecordBatchReader.from_batches(schema, parts())
    node.write_bucket(0, BucketOutput({"data": reader}))
    assert len(sizes) == 5
    for number, size in enumerate(sizes):
        assert 20_000 * number <= size <= 21_000 * (number + 1)
    assert node.read(0).num_rows == 5


@pytest.mark.parametrize("root", ["local", "memory://ppt-parts"])
def test_checksums_are_those_of_the_file(tmp_path: Path, root: str) -> None:
    node = node_of(tmp_path if root == "local" else root, 0, 2, 5)
    receipt = node.receipt(0)
    name = receipt["files"]["data"]
    content = node.store.fs.cat_file(node.path(name))
    pieces = checksums.pieces_of(content)
    assert receipt["checksums"][name] == {**checksums.checksum_of(content), "pieces": pieces}
    node.write_manifest()
    read_all(node)


def test_a_disk_that_is_full_is_told_with_the_file(tmp_path: Path) -> None:
    node, (soft, hard) = node_of(tmp_path, 0, 5), resource.getrlimit(resource.RLIMIT_FSIZE)
    path = node.path(node.receipt(0)["files"]["data"])
    reader = pa.RecordBatchReader.from_batches(SCHEMA, iter([batch(0, 2), batch(2, 5)]))
    before = sorted(os.listdir(node.folder))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        with pytest.raises(OSError) as told:
            node.write_bucket(0, BucketOutput({"data": reader}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, path)
    assert sorted(os.listdir(node.folder)) == before
    read_all(node)

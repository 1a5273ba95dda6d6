"""Nodes: named by what they are made of, there whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from common import QUICKSTART
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ppt.config import ConfigError
from ppt.store.checksums import seal, unseal
from ppt.store.nodes import BucketOutput, Count, Store, bucket_of


def _output(values: list[int], **info: int) -> BucketOutput:
    table = pa.table({"value": pa.array(values, pa.int64())})
    return BucketOutput({"data": table}, {"rows": Count(len(values), len(values))}, info)


def test_a_digest_covers_spec_parents_and_kind(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    parent, other = store.node("samples", {"seed": 1}), store.node("samples", {"seed": 2})
    nodes = [
        store.node("labels", {"a": 1}, {"samples": parent}),
        store.node("labels", {"a": 2}, {"samples": parent}),
        store.node("labels", {"a": 1}, {"samples": other}),
        store.node("features", {"a": 1}, {"samples": parent}),
    ]
    assert len({node.digest for node in nodes}) == 4
    assert store.node("labels", {"a": 1}, {"samples": parent}).digest == nodes[0].digest


@pytest.mark.parametrize("kind", ["samples", "features"])  # Parquet and memory-mapped Arrow
def test_a_node_is_complete_with_every_bucket_and_its_manifest(tmp_path: Path, kind: str) -> None:
    node = Store(str(tmp_path)).node(kind, {}, buckets=2)
    assert node.missing_buckets() == [0, 1]
    node.write_bucket(1, _output([3], cars=1))
    assert node.missing_buckets() == [0]
    node.write_bucket(0, _output([1, 2], cars=2))
    assert not node.is_complete()
    node.write_manifest()
    assert node.is_complete()
    assert node.read_all()["value"].to_pylist() == [1, 2, 3]
    assert node.counts() == {"rows": {"in": 3, "out": 3, "quarantined": 0}}
    assert node.info() == {"cars": 3}
    assert json.loads(Path(node.path("manifest.json")).read_text())["counts"] == node.counts()


def test_a_deleted_table_is_a_missing_bucket(tmp_path: Path) -> None:
    node = Store(str(tmp_path)).node("samples", {}, buckets=2)
    for bucket in range(2):
        node.write_bucket(bucket, _output([bucket]))
    node.write_manifest()
    Path(node.path("data-00001.parquet")).unlink()
    assert node.missing_buckets() == [1]
    assert not node.is_complete()


def test_another_run_cleans_the_folder_while_a_file_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store behind a URL has no locks."""
    node, cleaned = Store("memory://ppt-cleaned").node("samples", {}, buckets=1), list[str]()
    move = node.store.fs.mv

    def clean_and_move(path: str, to: str) -> None:
        if not cleaned:
            cleaned.append(path)
            node.clean()
        move(path, to)

    monkeypatch.setattr(node.store.fs, "mv", clean_and_move)
    node.write_bytes("data", b"content")
    assert len(cleaned) == 1
    assert node.sizes() == {"data": 7}


def test_a_store_on_another_filesystem() -> None:
    node = Store("memory://ppt-test-store").node("features", {}, buckets=1)
    node.write_bucket(0, _output([4, 5]))
    node.write_manifest()
    assert node.is_complete()
    assert node.read(0)["value"].to_pylist() == [4, 5]


@given(st.text(), st.integers(1, 100))
def test_a_bucket_is_a_pure_function_of_the_key(key: str, num_buckets: int) -> None:
    assert 0 <= bucket_of(key, num_buckets) < num_buckets
    assert bucket_of(key, num_buckets) == bucket_of(str(key), num_buckets)


def test_known_buckets() -> None:
    """Stored tables depend on it: this must never change."""
    assert [bucket_of(key, 16) for key in ("", "a", "refcoco/1", "女")] == KNOWN_BUCKETS


KNOWN_BUCKETS = [
    int.from_bytes(bytes.fromhex(first_bytes), "big") % 16
    for first_bytes in (  # SHA-256 of the four keys, first eight bytes
        "e3b0c44298fc1c14",
        "ca978112ca1bbdca",
        "7917376a713b1d4c",
        "0ab4610b9257c298",
    )
]


@pytest.mark.parametrize(
    ("root", "told"),
    [
        ("foo://x", "Protocol not known: foo"),
        ("simplecache::foo://x", "Protocol not known: foo"),
        ("zip://a::file:///nowhere.zip", "No such file"),
        ("http://127.0.0.1:9/x", "Cannot connect"),
    ],
)
def test_a_store_that_cannot_be_opened_is_told_in_a_line(root: str, told: str) -> None:
    from ppt.jobs.cli import app

    with pytest.raises(ConfigError, match=f"^store: '{root}' cannot be opened: .*{told}"):
        Store(root).check()
    commands = [["verify", root], ["gc", root], ["show", "ab", "--store", root]]
    commands.append(["prepare", str(QUICKSTART), "--local", f"store={root}"])
    for command in commands:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, result.exception
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: store: '{root}' cannot be opened: ")


@pytest.mark.parametrize("content", [{"a": [1, "x"], "b": {"c": 0.5}}, {"checksums": {}}, {}])
def test_no_flipped_bit_of_a_sealed_file_changes_what_is_read(content: dict[str, Any]) -> None:
    sealed, told = seal(content), 0
    for place in range(8 * len(sealed)):
        damaged = bytearray(sealed)
        damaged[place // 8] ^= 1 << place % 8
        try:
            assert unseal(bytes(damaged)) == content, damaged
        except ValueError as error:
            told += 1
            assert "damaged" in str(error)
    assert told > 7 * len(sealed)  # the others are in the space between
    assert unseal(sealed) == content

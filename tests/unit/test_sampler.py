"""The plan: exact mixtures, equal for equal seeds, complete over any number of workers."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppt.batches.sampler import LabelTable, Plan
from ppt.config import ConfigError
from ppt.store.nodes import BucketOutput, Node, Store


def _labels(folder: Path, counts: dict[str, int], name: str) -> LabelTable:
    """`counts[source]` pictures with 1, 2, 3, 1, 2, ... expressions each, over 3 buckets."""
    node = Store(str(folder)).node("labels", {"name": name}, buckets=3)
    rows: list[list[dict]] = [[], [], []]
    for source, pictures in counts.items():
        for i in range(pictures):
            row = {"picture": f"{source}/{i}", "source": source}
            rows[i % 3] += [row] * (1 + i % 3)
    schema = pa.schema([("picture", pa.string()), ("source", pa.string())])
    for bucket in range(3):
        node.write_bucket(
            bucket, BucketOutput({"data": pa.Table.from_pylist(rows[bucket], schema)})
        )
    node.write_manifest()
    return LabelTable(node, node, node)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[LabelTable]:
    folder = tmp_path_factory.mktemp("labels")
    return [
        _labels(folder, {"h_sem": 12, "h_ref": 9}, "h"),  # 24 and 18 expressions
        _labels(folder, {"d_sem": 30}, "d"),  # 60
    ]


def _plan(tables: list[LabelTable], sources: dict[str, float], **settings) -> Plan:
    return Plan(tables, sources, **{"stage": "s", "seed": 0, "batch_size": 8} | settings)


def _drawn(plan: Plan, world_size: int, epoch: int = 1) -> list[tuple[int, int, int, int]]:
    """(step, table, bucket, label row) of every expression over all workers."""
    found = []
    for rank in range(world_size):
        for row in plan.epoch(epoch, rank, world_size).to_pylist():
            found += [(row["iteration"], row["table"], row["bucket"], r) for r in row["rows"]]
    return found


@settings(max_examples=20, deadline=None)
@given(workers=st.integers(1, 5), batch=st.integers(5, 40), epoch=st.integers(1, 9))
def test_an_epoch_is_the_union_once(tables, workers: int, batch: int, epoch: int) -> None:
    plan = _plan(tables, {"h_sem": 1, "d_sem": 1}, batch_size=batch)
    drawn = _drawn(plan, workers, epoch)
    assert Counter(step for step, *_ in drawn) == dict.fromkeys(range(plan.num_iterations), batch)
    times = Counter(tuple(rest) for _, *rest in drawn)
    assert len(times) == 24 + 60  # every expression, and only the last step repeats some
    assert sum(times.values()) == plan.num_iterations * batch
    assert sum(count - 1 for count in times.values()) < batch


def test_weights_are_exact(tables: list[LabelTable]) -> None:
    plan = _plan(tables, {"h_ref": 2, "d_sem": 0.5}, batch_size=6)
    tables_drawn = Counter(table for _, table, *_ in _drawn(plan, 2))
    assert plan.num_iterations == (36 + 30) / 6
    assert tables_drawn == {0: 36, 1: 30}


def test_equal_seeds_are_equal_and_others_are_not(tables: list[LabelTable]) -> None:
    sources = {"h_sem": 1.0, "d_sem": 1.0}
    first = _plan(tables, sources).epoch(3, 0, 2)
    assert first.equals(_plan(tables, dict(reversed(sources.items()))).epoch(3, 0, 2))
    assert not first.equals(_plan(tables, sources, seed=1).epoch(3, 0, 2))
    assert not first.equals(_plan(tables, sources, stage="t").epoch(3, 0, 2))
    assert not first["rows"].equals(_plan(tables, sources).epoch(4, 0, 2)["rows"])


def test_a_row_is_one_picture(tables: list[LabelTable]) -> None:
    for row in _plan(tables, {"h_sem": 1, "h_ref": 1}).epoch(1, 0, 1).to_pylist():
        labels: Node = tables[row["table"]].labels
        pictures = labels.read(row["bucket"])["picture"].take(row["rows"])
        assert len(set(pictures.to_pylist())) == 1


def _both(folder: Path) -> list[LabelTable]:
    """Ten pictures in a bucket, each with two expressions of h_sem and three of h_ref, mixed."""
    node = Store(str(folder)).node("labels", {"name": "both"}, buckets=1)
    kinds = ["h_ref", "h_sem", "h_ref", "h_sem", "h_ref"]
    rows = [{"picture": f"p{i}", "source": kind} for kind in kinds for i in range(10)]
    schema = pa.schema([("picture", pa.string()), ("source", pa.string())])
    node.write_bucket(0, BucketOutput({"data": pa.Table.from_pylist(rows, schema)}))
    node.write_manifest()
    return [LabelTable(node, node, node)]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("sources", [{"h_sem": 1, "h_ref": 1}, {"h_sem": 2.5, "h_ref": 0.4}])
def test_a_worker_reads_a_picture_once_an_iteration(
    tmp_path: Path, sources: dict[str, float], workers: int
) -> None:
    plan = _plan(_both(tmp_path), sources, batch_size=17)
    for rank in range(workers):
        rows = plan.epoch(1, rank, workers).to_pylist()
        read = [(row["iteration"], row["rows"][0] % 10) for row in rows]
        assert len(read) == len(set(read)) and read == sorted(read)
        assert all(len({r % 10 for r in row["rows"]}) == 1 for row in rows)


def test_expressions_of_both_sources_come_together(tmp_path: Path) -> None:
    plan = _plan(_both(tmp_path), {"h_sem": 1, "h_ref": 1}, batch_size=5)
    rows = plan.epoch(1, 0, 1).to_pylist()
    assert len(rows) == plan.num_iterations == 10  # a picture each
    assert all(sorted(r // 10 for r in row["rows"]) == [0, 1, 2, 3, 4] for row in rows)
    assert [row["rows"][0] % 10 for row in rows] != list(range(10))


def test_weights_that_leave_nothing_are_named(tables: list[LabelTable]) -> None:
    with pytest.raises(ConfigError, match=r"stages.s.sources leaves no sample.*h_ref \(0.001\)"):
        _plan(tables, {"h_ref": 0.001})


def test_fewer_samples_than_a_batch_fill_one_step(tables: list[LabelTable]) -> None:
    plan = _plan(tables, {"h_ref": 1}, batch_size=100)
    assert plan.num_iterations == 1
    assert len(_drawn(plan, 2)) == 100


def test_a_source_without_samples_is_named(tables: list[LabelTable]) -> None:
    with pytest.raises(ConfigError, match="'s' trains on d_ref, which has no samples"):
        _plan(tables, {"d_ref": 1})

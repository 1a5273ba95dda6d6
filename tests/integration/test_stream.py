"""Ray Data delivers what the reader reads: the same batches in the same order, without copies."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch
from stored_tables import blob, label, reader, stored

from ppt.batches.batch import Batch
from ppt.batches.gather import StageReader
from ppt.config import Resources
from ppt.distributed import stream
from ppt.distributed.stream import Pause, _asking, _begun, from_row, stream_epochs, to_row

SIZE = (40, 64)

few = Resources(cpus_per_reader=0.1, readers_per_worker=2)


@pytest.fixture(scope="module")
def stage_reader(tmp_path_factory: pytest.TempPathFactory) -> StageReader:
    rows = [
        label(f"p{i}", SIZE, str(1 + (i + j) % 5), [blob(SIZE, (i, j, i + 20, j + 20))] * (1 + j))
        for i in range(20)
        for j in range(3)
    ]
    return reader(stored(tmp_path_factory.mktemp("tables"), rows, num_buckets=3), batch_size=7)


def tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.mapped(lambda tensor: found.append(tensor) or tensor)
    return found


def assert_equal(one: Batch, other: Batch) -> None:
    for name in ("pictures", "expression_ids", "texts"):
        assert getattr(one, name) == getattr(other, name)
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_a_row_holds_the_batch_itself(stage_reader: StageReader) -> None:
    batch = next(stage_reader.batches(1, 0, 1))
    place, found = from_row(to_row((1, 0), batch))
    assert place == (1, 0)
    assert_equal(found, batch)
    assert {f.name for f in fields(found.targets)} >= {"masks", "points"}
    for a, b in zip(tensors(found), tensors(batch), strict=True):
        assert a.data_ptr() == b.data_ptr()


def test_it_is_known_when_a_batch_is_waited_for() -> None:
    def items() -> Iterator[int]:
        for number in range(2):
            assert Pause.asked.is_set()
            yield number
        raise OSError("lost")

    asking = _asking(items())
    for number in range(2):
        assert next(asking) == number
        assert not Pause.asked.is_set()
    with pytest.raises(OSError, match="lost"):
        next(asking)
    assert not Pause.asked.is_set()
    assert list(_asking(iter([]))) == []
    assert not Pause.asked.is_set()


def test_streamed_batches_are_the_readers(
    cluster: None, stage_reader: StageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ITERATIONS_A_TASK", 4)  # several tasks an epoch
    for rank in range(2):
        streams = stream_epochs(
            stage_reader, epochs=range(2, 4), rank=rank, world_size=2, resources=few
        )
        for epoch, batches in zip(range(2, 4), streams, strict=True):
            expected = list(stage_reader.batches(epoch, rank, 2))
            found = list(batches)
            assert len(found) == len(expected) == stage_reader.plan.num_iterations
            for one, other in zip(found, expected, strict=True):
                assert_equal(one, other)


def test_the_first_batch_is_waited_for_by_a_thread() -> None:
    begun = threading.Event()

    def items(fault: Exception | None = None) -> Iterator[int]:
        begun.set()
        if fault:
            raise fault
        yield from range(3)

    batches = _begun(items())
    assert begun.wait(60)
    assert list(batches) == [0, 1, 2]
    with pytest.raises(OSError, match="no disk"):
        next(_begun(items(OSError("no disk"))))


def test_what_starts_a_training_imports_no_nets() -> None:
    """A worker builds its nets while its readers start, and each import would delay them."""
    nets = {"open_clip", "segment_anything", "torchvision", "torch._dynamo", "scipy", "mlflow"}
    program = f"import sys, ppt.distributed.ray_runner; print(*({nets!r} & sys.modules.keys()))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

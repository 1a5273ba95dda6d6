"""(c) The input path alone, against the bare copy of the same features into one buffer."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from ppt.batches.batch import Batch
from ppt.batches.gather import StageReader, features_of
from ppt.experiments.benchmark.measuring import shortest
from ppt.experiments.benchmark.rows import RATIO, Row, Setting, Stream, Workload
from ppt.store.lookup import mapped, row_of


def measure_input_path(setting: Setting) -> list[Row]:
    """Measure one worker's reader at both sizes, with many buckets, and through Ray Data."""
    full, many = setting.full, setting.many_buckets
    rows = [row for work in (setting.toy, full, many) for row in _measure(work)]
    few_rate, many_rate = (_value(rows, work.size, "reader") for work in (full, many))
    rows.append(Row("c", "full", "256 buckets / 16 buckets", many_rate / few_rate, RATIO))
    if setting.stream:
        rows += _measure_stream(full, setting.stream, epochs=4 if setting.short else 12)
        streamed = _value(rows, "full", "through Ray Data")
        rows.append(Row("c", "full", "through Ray Data / reader", streamed / few_rate, RATIO))
    return rows


def _value(rows: list[Row], size: str, name: str) -> float:
    return next(row.value for row in rows if (row.size, row.name) == (size, name))


def _measure(work: Workload) -> list[Row]:
    """Measure the reader in this process; a first pass brings the files into memory."""
    reader = work.reader
    expressions, reads, pictures = _count(reader.batches(1, 0, 1))
    num_bytes = _copy_bare(reader)
    read, bare = shortest(
        work.repeats, lambda: _count(reader.batches(1, 0, 1)), lambda: _copy_bare(reader)
    )
    return [
        Row("c", work.size, "reader", expressions / read, "expressions/s"),
        Row("c", work.size, "reader", num_bytes / read / 1e6, "MB/s"),
        Row("c", work.size, "bare copy", num_bytes / bare / 1e6, "MB/s"),
        Row("c", work.size, "reader / bare copy", bare / read, RATIO),
        Row("c", work.size, "reads of a picture in an iteration", reads / pictures, RATIO),
    ]


def _measure_stream(work: Workload, stream: Stream, epochs: int) -> list[Row]:
    """Measure what one worker gets of Ray Data if it does nothing else, after the first epoch."""
    streams = stream(work.reader, range(1, epochs + 1))
    expressions, iterations, started, in_thread = 0, 0, 0.0, 0.0
    for epoch, batches in enumerate(streams, start=1):
        if epoch == 2:
            started, in_thread = time.perf_counter(), time.thread_time()
        for batch in batches:
            if epoch > 1:
                expressions += len(batch.texts)
                iterations += 1
    seconds, of_thread = time.perf_counter() - started, time.thread_time() - in_thread
    rate, each = expressions / seconds, 1e3 * of_thread / iterations
    return [
        Row("c", work.size, "through Ray Data", rate, "expressions/s"),
        Row("c", work.size, "CPU time of the training thread in an iteration", each, "ms"),
    ]


def _count(batches: Iterable[Batch]) -> tuple[int, int, int]:
    """Return the expressions of batches, their pictures, and their pictures each counted once."""
    expressions = reads = pictures = 0
    for batch in batches:
        expressions += len(batch.texts)
        reads += len(batch.pictures)
        pictures += len(set(batch.pictures))
    return expressions, reads, pictures


def _copy_bare(reader: StageReader) -> int:
    """Copy the features of an epoch's pictures, one by one, into one buffer; return the bytes."""
    plan, num_bytes, buffer = reader.plan.epoch(1, 0, 1), 0, np.zeros(0, np.float16)
    columns = (plan[name].to_pylist() for name in ("table", "bucket", "rows"))
    for number, bucket, rows in zip(*columns, strict=True):
        features = reader.tables[number].features
        picture = reader.labels(number, bucket).pictures[rows[0]]
        row, table = row_of(features, bucket, "picture")[picture], mapped(features, bucket)
        for name in features_of(table.schema):
            array = table.row(name, row).ravel()
            if len(buffer) < len(array):
                buffer = np.zeros(len(array), np.float16)
            np.copyto(buffer[: len(array)], array)
            num_bytes += array.nbytes
    return num_bytes

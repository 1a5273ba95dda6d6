"""(c) The input path alone, against the bare copy of the same features into one buffer."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from ppt.batches.gather import StageReader, features_of
from ppt.experiments.benchmark.measuring import shortest
from ppt.experiments.benchmark.rows import RATIO, Row, Setting, Stream, Workload
from ppt.store.lookup import mapped, row_of


def measure_input_path(setting: Setting) -> list[Row]:
    """Measure one worker's reader at both sizes, with many buckets, and through Ray Data."""
    full, many = setting.full, setting.many_buckets
    rows = _measure(setting.toy) + _measure(full, many)
    few_rate, many_rate = (_value(rows, work.size, "reader") for work in (full, many))
    rows.append(Row("c", "full", "256 buckets / 16 buckets", many_rate / few_rate, RATIO))
    if setting.stream:
        rows += _measure_stream(full, setting.stream, epochs=4 if setting.short else 12)
        streamed = _value(rows, "full", "through Ray Data")
        rows.append(Row("c", "full", "through Ray Data / reader", streamed / few_rate, RATIO))
    return rows


def _value(rows: list[Row], size: str, name: str) -> float:
    return next(row.value for row in rows if (row.size, row.name) == (size, name))


def _measure(*works: Workload) -> list[Row]:
    """Measure readers in this process in turns; a first pass brings the files into memory."""
    readers = [work.reader for work in works]
    reads = [partial(_count_epoch, reader) for reader in readers]
    copies = [partial(_copy_bare, reader) for reader in readers]
    counts, sizes = [read() for read in reads], [copy() for copy in copies]
    seconds = shortest(works[0].repeats, *reads, *copies)
    times = zip(seconds[: len(works)], seconds[len(works) :], strict=True)
    of_works = zip(works, counts, sizes, times, strict=True)
    return [row for of_work in of_works for row in _rows(*of_work)]


def _rows(
    work: Workload, counts: tuple[int, int, int], num_bytes: int, times: tuple[float, float]
) -> list[Row]:
    """Return the rows of a reader.

    Args:
        work: what was read.
        counts: what `_count_epoch` returned.
        num_bytes: the bytes of the features.
        times: the seconds of the reader and of the bare copy.
    """
    expressions, reads, pictures = counts
    read, bare = times
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


def _count_epoch(reader: StageReader) -> tuple[int, int, int]:
    """Read an epoch; return its expressions, its batches' pictures, and those counted once each."""
    expressions = reads = pictures = 0
    for batch in reader.batches(1, 0, 1):
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

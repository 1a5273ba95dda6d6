"""Per-sentence results of a run as files for users: one Parquet file for each stage or baseline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppt.evaluation.protocols import OURS
from ppt.store.disk import replacing
from ppt.store.nodes import Node
from ppt.store.schema import SENTENCES
from ppt.tracking.record import EVALUATION, RunRecord


def results_folder(record: RunRecord) -> Path:
    """Return `runs/<name>/results`; another split or protocol has a subfolder of it."""
    folder = Path(record.folder) / "results"
    if record.split != EVALUATION:
        folder /= record.split
    return folder if record.protocol == OURS else folder / record.protocol.name


def write_results(record: RunRecord) -> Path:
    """Write `<name>.parquet` for each baseline and stage, and return the folder of the files."""
    folder = results_folder(record)
    folder.mkdir(parents=True, exist_ok=True)
    samples = record.data[record.split].samples
    for name in record.metrics():
        results = record.results(name)
        facts = {
            "run": record.curriculum.name,
            "measured": name,
            "split": record.split,
            "protocol": record.protocol.name,
            "digest": results.digest,
        }
        write_sentences(results, samples, folder / f"{name}.parquet", facts)
    return folder


def write_sentences(results: Node, samples: Node, path: Path, facts: dict[str, str]) -> None:
    """Write a results table to one file with the schema `SENTENCES`, one bucket at a time.

    `facts` are written into the file's metadata.
    """
    schema = SENTENCES.with_metadata(facts)
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for bucket in range(results.num_buckets):
            rows = list(_sentences(results, samples, bucket))
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _sentences(results: Node, samples: Node, bucket: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a bucket with points in pixels and masks as COCO's run-length encoding."""
    pictures = samples.read(bucket, columns=["picture", "height", "width"]).to_pylist()
    sizes = {row["picture"]: (row["height"], row["width"]) for row in pictures}
    for row in results.read(bucket).to_pylist():
        height, width = sizes[row["picture"]]
        points = np.asarray(row["points"]).reshape(-1, 2) * (width, height)
        yield {
            **row,
            "points": points.round(2).tolist(),
            "height": height,
            "width": width,
            "mask": {"size": [height, width], "counts": row["mask"].decode()},
        }

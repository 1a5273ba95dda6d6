"""The per-sentence results of a run as files for people: one Parquet a stage or baseline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppt.pipeline.record import EVALUATION, RunRecord
from ppt.protocols import OURS
from ppt.schema import SENTENCES
from ppt.store import Node


def results_folder(record: RunRecord) -> Path:
    """`runs/<name>/results`; another split or protocol has a folder below it."""
    folder = Path(record.folder) / "results"
    if record.split != EVALUATION:
        folder /= record.split
    return folder if record.protocol == OURS else folder / record.protocol.name


def write_results(record: RunRecord) -> Path:
    """Write `<stage or baseline>.parquet` of all that was measured; returns their folder."""
    folder = results_folder(record)
    folder.mkdir(parents=True, exist_ok=True)
    samples = record.nodes[f"samples.{record.split}"]
    for name in [*record.baselines, *(stage.name for stage in record.stages)]:
        results = record.nodes[f"results.{name}"]
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
    """A results table as one file (`SENTENCES`), bucket by bucket; `facts` go to its metadata."""
    temporary = path.with_name(f".{path.name}")
    with pq.ParquetWriter(temporary, SENTENCES.with_metadata(facts), compression="zstd") as writer:
        for bucket in range(results.num_buckets):
            rows = list(_sentences(results, samples, bucket))
            writer.write_table(pa.Table.from_pylist(rows, SENTENCES.with_metadata(facts)))
    os.replace(temporary, path)


def _sentences(results: Node, samples: Node, bucket: int) -> Iterator[dict[str, Any]]:
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

"""predict: the expressions of a CSV, by the actor pool; a picture's expressions together.

The table has the columns `picture` (a path, relative to the table) and `expression`; others are
left alone. What cannot be used is quarantined with its reason, row by row.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ppt.checkpoint import StoredCheckpoint
from ppt.config import ConfigError, Resources
from ppt.data.pictures import UnreadablePicture
from ppt.data.sources import RawExpression, split_expressions
from ppt.masks import decode_rle
from ppt.pipeline.cluster import connected
from ppt.pipeline.models import pass_device
from ppt.pipeline.passes import Pool
from ppt.pipeline.progress import progress_bar
from ppt.predict import Predictor, save_mask
from ppt.schema import PREDICTIONS, QUARANTINE
from ppt.store import DATA, BucketOutput, Count, Node, Store, bucket_of
from ppt.store import QUARANTINE as REJECTED

COLUMNS = ("picture", "expression")
PICTURES_PER_BUCKET = 8
"""What an interruption may cost, and what an actor does between two steps of the bar."""


@dataclass(frozen=True)
class Row:
    """One row of the table that is asked; `fault` says why it cannot be used."""

    number: int  # from 1, the header not counted
    picture: str  # as the table gives it
    expression: str
    path: Path
    fault: str | None = None


@dataclass(frozen=True)
class PredictedTable:
    """Where the results are."""

    predictions: Path  # predictions.parquet; predictions.jsonl beside it
    masks: Path  # a folder with a PNG for each row
    quarantine: Path  # quarantine.jsonl
    count: Count
    reasons: list[dict[str, Any]]


def predict_table(
    table: str | Path, checkpoint: StoredCheckpoint, out: str | Path, resources: Resources
) -> PredictedTable:
    """Predict every row of a CSV into the folder `out`. What is done already is not done again.

    Raises ConfigError for a table that cannot be read, or a checkpoint that cannot be used.
    """
    rows = read_table(Path(table))
    Predictor(checkpoint)  # wrong weights are told here, before Ray starts
    node, process = _pass_over(rows, checkpoint, Store(str(out)))
    if not node.is_complete():
        with connected(resources):
            pool = Pool(resources)
            try:
                pool.run(node, process, title=f"predict {Path(table).name}", total=len(rows))
            finally:
                pool.close()
    return _export(node, Path(out))


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV, those with a fault too; ConfigError for what is no such table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(
                    f"table: {str(path)!r} needs the columns {', '.join(COLUMNS)} in its first "
                    f"line, {' and '.join(missing)} is missing"
                )
            rows = [_row(number, fields, path.parent) for number, fields in enumerate(reader, 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"table: {str(path)!r} cannot be read as CSV: {error}") from None
    if not rows:
        raise ConfigError(f"table: {str(path)!r} has no row below its first line")
    return rows


def _row(number: int, fields: dict[str | None, Any], folder: Path) -> Row:
    picture, expression = (fields[name] or "" for name in COLUMNS)
    fault = None
    if None in fields:  # where csv puts what is beyond the header
        fault = "more fields than columns: put an expression with a comma in double quotes"
    elif not picture.strip():
        fault = "no picture is given"
    else:
        _, broken = split_expressions([RawExpression("", expression)])
        fault = broken[0].reason if broken else None
    return Row(number, picture, expression, (folder / picture).absolute(), fault)


def _pass_over(
    rows: list[Row], checkpoint: StoredCheckpoint, store: Store
) -> tuple[Node, _PredictRows]:
    """The node that these rows, their pictures' files and the checkpoint name, and its pass."""
    num_buckets = -(-len({row.picture for row in rows}) // PICTURES_PER_BUCKET)
    buckets: list[list[Row]] = [[] for _ in range(num_buckets)]
    for row in rows:
        buckets[bucket_of(row.picture, num_buckets)].append(row)
    states = {path: _state(path) for path in {row.path for row in rows}}
    asked = [
        [row.number, str(row.path), row.picture, row.expression, row.fault, states[row.path]]
        for row in rows
    ]
    spec = {"checkpoint": checkpoint.digest, "rows": asked, "buckets": num_buckets}
    node = store.node("predictions", spec, buckets=num_buckets)
    return node, _PredictRows(checkpoint, tuple(map(tuple, buckets)))


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, so that one that came or changed since is looked at again."""
    try:
        if not path.is_file():
            return None
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=1)
def _predictor(checkpoint: StoredCheckpoint, device: str) -> Predictor:
    return Predictor(checkpoint, device)


@dataclass(frozen=True)
class _PredictRows:
    checkpoint: StoredCheckpoint
    buckets: tuple[tuple[Row, ...], ...]

    def __call__(self, bucket: int) -> BucketOutput:
        rows = self.buckets[bucket]
        found: list[dict[str, Any]] = []
        rejected = [_rejected(row, row.fault) for row in rows if row.fault]
        for group in _by_picture(row for row in rows if not row.fault):
            try:
                predictions = _predictor(self.checkpoint, pass_device()).predict(
                    group[0].path, [row.expression for row in group]
                )
            except UnreadablePicture as error:
                rejected += [_rejected(row, str(error)) for row in group]
                continue
            found += [
                {**prediction.as_dict(), "row": row.number, "picture": row.picture}
                for row, prediction in zip(group, predictions, strict=True)
            ]
        return BucketOutput(
            {
                DATA: pa.Table.from_pylist(found, PREDICTIONS),
                REJECTED: pa.Table.from_pylist(rejected, QUARANTINE),
            },
            {"expressions": Count(len(rows), len(found), len(rejected))},
        )


def _by_picture(rows: Iterator[Row]) -> list[list[Row]]:
    groups: dict[Path, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.path, []).append(row)
    return list(groups.values())


def _rejected(row: Row, reason: str | None) -> dict[str, Any]:
    return {
        "picture": row.picture,
        "expression_id": str(row.number),
        "num_expressions": 1,
        "reason": reason,
    }


# ---------------------------------------------------------------- for people


def _export(node: Node, out: Path) -> PredictedTable:
    """The whole results in the table's order: Parquet, JSON Lines, a mask PNG a row."""
    predictions = node.read_all().sort_by("row")
    result = PredictedTable(
        out / "predictions.parquet",
        out / "masks",
        out / "quarantine.jsonl",
        Count(*(node.counts()["expressions"][key] for key in ("in", "out", "quarantined"))),
        sorted(
            (
                {"row": int(r["expression_id"]), "picture": r["picture"], "reason": r["reason"]}
                for r in node.quarantine().to_pylist()
            ),
            key=lambda r: r["row"],
        ),
    )
    pq.write_table(predictions, result.predictions)
    _write_lines(result.predictions.with_suffix(".jsonl"), predictions.to_pylist())
    _write_lines(result.quarantine, result.reasons)
    result.masks.mkdir(exist_ok=True)
    for old in result.masks.glob("[0-9]*.png"):  # of another table or checkpoint
        old.unlink()
    with progress_bar("write masks", len(predictions)) as advance:
        for batch in predictions.select(["row", "mask"]).to_batches(max_chunksize=64):
            for row in batch.to_pylist():
                mask = decode_rle(row["mask"]["counts"].encode(), *row["mask"]["size"])
                save_mask(mask, result.masks / f"{row['row']:06d}.png")
            advance(len(batch))
    return result


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

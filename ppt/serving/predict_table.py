"""Predictions for the expressions of a CSV table, made bucket by bucket as a step.

The table has the columns `picture` (a path relative to the table) and `expression`; other columns
are ignored. The expressions of a picture are predicted together. A row that cannot be used is
quarantined with its reason.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ppt.config import ConfigError
from ppt.config.messages import one_line, shown
from ppt.data.source import RawExpression, split_expressions
from ppt.data.table_file import read_csv
from ppt.images.masks import decode_rle
from ppt.images.pictures import (
    UnreadablePicture,
    existing_path,
    num_bytes,
    printable,
    read_picture,
)
from ppt.models.loaded import current_device
from ppt.serving.own_world import check_world
from ppt.serving.predictor import Predictor, save_mask
from ppt.serving.result_files import COCO_PARTS, coco_results
from ppt.serving.zero_shot import AnyModel, ZeroShotPredictor, open_predictor
from ppt.steps.progress import progress_bar
from ppt.steps.runner import Runner
from ppt.steps.step import Step
from ppt.store.disk import check_writable
from ppt.store.nodes import DATA, BucketOutput, Count, Node, Store, bucket_of, digest_of
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import PREDICTIONS, QUARANTINE

COLUMNS = ("picture", "expression")
PICTURES_PER_BUCKET = 8
"""The average number of pictures in a bucket.

An interruption loses the buckets that are being made, and the progress bar moves bucket by bucket.
"""


@dataclass(frozen=True)
class Row:
    """A row of the table. `fault` is the reason why the row cannot be used, if there is one."""

    number: int  # from 1, without the header
    picture: str  # as in the table; where a line cannot be read, the name of the table and the line
    expression: str
    path: Path
    fault: str | None = None


@dataclass(frozen=True)
class PredictedTable:
    """The paths of a table's results, and how many of its rows were predicted."""

    predictions: Path  # predictions.parquet, with predictions.jsonl beside it
    masks: Path  # a folder with a PNG file for each predicted row
    quarantine: Path  # quarantine.jsonl
    count: Count
    reasons: list[dict[str, Any]]
    unread: list[list[str]]  # for each row with words that the text encoder does not read, these


def predict_table(
    table: str | Path,
    model: AnyModel,
    out: str | Path,
    open_runner: Callable[[Store], AbstractContextManager[Runner]],
    *,
    force: bool = False,
) -> PredictedTable:
    """Predict every row of a CSV table into the folder `out`; finished buckets are not made again.

    Args:
        table: the path of the table.
        model: the trained stage, or CLIP and SAM without training.
        out: the folder of the results, which is also the store of the step.
        open_runner: opens a runner for the store. It is called only if something is left to do.
        force: whether the embedded world's model answers any picture, see `own_world`.

    Raises:
        ConfigError: if the table cannot be read or the model cannot be used, before `out` is made;
            or if nothing can be written into it.
    """
    rows = read_table(Path(table))
    open_predictor(model, "cpu")  # raises ConfigError for wrong weights before Ray starts
    check_writable(out, "--out")
    store = Store(str(out))
    step = PredictRows.of(rows, model, printable(Path(table).name), force=force)
    node = step.node(store)
    if not node.is_complete():
        with open_runner(store) as runner:
            runner.run(step)
    return _export(node, Path(out))


def read_table(path: Path) -> list[Row]:
    """Read the rows of a CSV table, including those with a fault.

    Raises ConfigError if the file cannot be read as CSV, lacks a column or has no row.
    """
    if num_bytes(path) is None:
        raise ConfigError(f"table: {str(path)!r} cannot be read: no such file, or no regular one")
    try:
        lines = list(read_csv(path, COLUMNS))
    except OSError as error:
        raise ConfigError(f"table: {str(path)!r} cannot be read: {error}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not lines:
        raise ConfigError(f"table: {str(path)!r} has no row below its first line")
    columns = next((cells for _, cells in lines if isinstance(cells, dict)), COLUMNS)
    if not {*COLUMNS} <= {*columns}:
        raise ConfigError(
            f"table: {str(path)!r} must name the columns {','.join(COLUMNS)} in its first line, "
            f"got {shown(','.join(columns))}"
        )
    return [_row(number, *line, path) for number, line in enumerate(lines, 1)]


def _row(number: int, line: int, cells: dict[str, Any] | str, table: Path) -> Row:
    """Make a row of a line's cells, or of the text of what is wrong with the line."""
    if isinstance(cells, str):
        nameless = f"{printable(table.name)} line {line}"
        return Row(number, nameless, "", table, f"line {line} {cells}")
    picture, expression = (cells[name] for name in COLUMNS)
    fault = None
    if not picture.strip():
        fault = "no picture is given"
    else:
        _, broken = split_expressions([RawExpression("", expression)])
        fault = broken[0].reason if broken else None
    return Row(number, picture, expression, (table.parent / picture.strip()).absolute(), fault)


def _state(path: Path) -> tuple[int, int] | None:
    """Return the size and the modification time of a file, or None if there is no file.

    They are part of the step's digest, so that a file that appeared or changed is read again.
    """
    try:
        path = existing_path(path)
        if not path.is_file():
            return None
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=1)
def _predictor(model: AnyModel, device: str) -> Predictor | ZeroShotPredictor:
    return open_predictor(model, device)


@dataclass(frozen=True)
class PredictRows(Step):
    """The predictions for a table's rows; rows that cannot be used are quarantined."""

    kind = "predictions"
    command = "predict"
    version = 5

    model: AnyModel
    rows: tuple[tuple[Row, ...], ...]  # by bucket
    name: str  # the name of the table's file, for display
    force: bool = False  # whether the embedded world's model answers any picture

    @classmethod
    def of(cls, rows: list[Row], model: AnyModel, name: str, *, force: bool = False) -> PredictRows:
        """Return the step for the given rows, with all rows of a picture in the same bucket."""
        num_buckets = -(-len({row.picture for row in rows}) // PICTURES_PER_BUCKET)
        buckets: list[list[Row]] = [[] for _ in range(num_buckets)]
        for row in rows:
            buckets[bucket_of(row.picture, num_buckets)].append(row)
        return cls(model, tuple(map(tuple, buckets)), name, force)

    @property
    def title(self) -> str:
        return f"predict {self.name}"

    @property
    def buckets(self) -> int:
        return len(self.rows)

    def spec(self) -> dict[str, Any]:
        """Return the model, its calibration and a digest of the rows and of their files."""
        rows = sorted((row for bucket in self.rows for row in bucket), key=lambda r: r.number)
        calibration = self.model.calibration
        states = {path: _state(path) for path in {row.path for row in rows}}
        asked = [
            [row.number, str(row.path), row.picture, row.expression, row.fault, states[row.path]]
            for row in rows
        ]
        return {
            "checkpoint": self.model.digest,
            "calibration": calibration and asdict(calibration),
            "rows": digest_of(asked),
            "num_buckets": self.buckets,
            "force": self.force,
        }

    def total(self) -> int:
        return sum(map(len, self.rows))

    def __call__(self, bucket: int) -> BucketOutput:
        rows = self.rows[bucket]
        found: list[dict[str, Any]] = []
        rejected = [_rejected(row, row.fault) for row in rows if row.fault]
        for group in _by_picture(row for row in rows if not row.fault):
            try:
                image = read_picture(group[0].path)
                if not self.force:
                    check_world(self.model, image)
                predictions = _predictor(self.model, current_device()).predict(
                    image, [row.expression for row in group]
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


def _rejected(row: Row, reason: str) -> dict[str, Any]:
    return {
        "picture": row.picture,
        "expression_id": str(row.number),
        "num_expressions": 1,
        "reason": one_line(reason),
    }


# ---------------------------------------------------------------- the results as files


def _export(node: Node, out: Path) -> PredictedTable:
    """Write the results as files, and return their paths.

    The files are Parquet and JSON Lines in the order of the table, COCO's results, and a mask as
    PNG for each row.
    """
    predictions = node.read_all().sort_by("row")
    told = predictions.to_pylist()
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
        [row["unread"] for row in told if row["unread"]],
    )
    pq.write_table(predictions, result.predictions)
    _write_lines(result.predictions.with_suffix(".jsonl"), told)
    _write_lines(result.quarantine, result.reasons)
    for part, content in zip(COCO_PARTS, coco_results(told), strict=True):
        (out / f"coco{part}").write_text(json.dumps(content))
    result.masks.mkdir(exist_ok=True)
    for old in result.masks.glob("[0-9]*.png"):  # masks of another table or checkpoint
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

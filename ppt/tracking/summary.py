"""The results of a run as plain data (`summary.json`) and as a table on the terminal."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import ppt
from ppt.config import Curriculum
from ppt.config.load import RUN_CURRICULUM
from ppt.config.reference import curriculum_text, keys_of
from ppt.data.shared_pictures import shared_pictures
from ppt.evaluation.metrics import METRICS
from ppt.store.checksums import seal
from ppt.store.disk import replacing
from ppt.store.nodes import Store
from ppt.tracking.record import Named, RunRecord

MAX_QUARANTINE_ROWS = 100
"""The largest number of quarantined rows that a summary lists; it always gives their total."""

_DISTRIBUTIONS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "ray": "ray",
    "mlflow": "mlflow",
    "open_clip": "open_clip_torch",
    "segment_anything": "segment_anything",
    "numpy": "numpy",
    "pyarrow": "pyarrow",
}

CHOSEN_BY = {
    "last": "the last stage",
    "pseudo_iou": "chosen by IoU with the validation split's pseudo labels: no ground truth",
    "truth": "chosen on ground truth: not weakly supervised",
}
"""The explanation of each value of `model_selection` for users."""


def summarise(record: RunRecord) -> dict[str, Any]:
    """Return the content of `summary.json`. The metrics are percentages on `split`."""
    quarantine = list(quarantined(record))
    return {
        "name": record.curriculum.name,
        "seed": record.curriculum.seed,
        "versions": versions(),
        "split": record.split,
        "protocol": record.protocol.name,
        "best_baseline": record.best_baseline,
        "published_image_size": record.curriculum.published_image_size,
        "baselines": {
            name: {**baseline.metrics, "recipe": baseline.recipe.model_dump()}
            for name, baseline in record.baselines.items()
        },
        "stages": [
            {
                "name": s.name,
                **s.metrics,
                "diagnosis": {k: None if math.isnan(v) else v for k, v in s.diagnosis.items()},
                "calibration": {
                    "weights": list(s.calibration.weights),
                    "bias": s.calibration.bias,
                },
                "epochs": s.num_epochs,
                "seconds": s.seconds,
            }
            for s in record.stages
        ],
        "chosen": _chosen(record),
        "warnings": list(warnings_of(record.curriculum)),
        "counts": counts(record),
        **_encoded(record),
        "quarantine": quarantine[:MAX_QUARANTINE_ROWS],
        "quarantine_total": len(quarantine),
        "digests": digests(record),
        "seconds": dict(record.seconds),
    }


def write_summary(summary: dict[str, Any], path: str | Path) -> Path:
    """Write the summary as JSON with its checksum, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(seal(summary))
    return path


def write_curriculum(record: RunRecord) -> Path:
    """Write the curriculum as it is trained into the run's folder, and return the path.

    The store is written as an absolute path, so that the folder finds it from anywhere.
    """
    store = Store(record.curriculum.store)
    root = store.path if store.is_local else store.root
    path = Path(record.folder) / RUN_CURRICULUM
    keys = keys_of(record.curriculum.model_copy(update={"store": root}))
    with replacing(path) as temporary:
        temporary.write_text("# The curriculum as this run was trained.\n" + curriculum_text(keys))
    return path


def versions() -> dict[str, str]:
    """Return the versions of Python, of ppt and of the libraries that results depend on."""
    found = {"python": platform.python_version(), "ppt": ppt.__version__}
    for name, distribution in _DISTRIBUTIONS.items():
        with suppress(PackageNotFoundError):  # a local run needs no Ray
            found[name] = version(distribution)
    return found


def warnings_of(curriculum: Curriculum) -> Iterator[str]:
    """Yield a warning for each thing that makes the figures of a run meaningless, or too good."""
    embedded = {"toybox_scenes", "toybox_objects"}
    formats = {getattr(curriculum.data, name).format for name in type(curriculum.data).model_fields}
    models = [n for n in ("clip", "sam") if getattr(curriculum.model, n).name == "toybox"]
    if models and formats - embedded:
        yield (
            f"model.{' and model.'.join(models)}: the embedded world's, which knows no real "
            "picture, so these masks and figures mean nothing"
        )
    random = [n for n in ("clip", "sam") if getattr(curriculum.model, n).weights == "random"]
    if random:
        yield f"the weights of {' and '.join(random)} are random: these figures mean nothing"
    if curriculum.stages:
        yield from shared_pictures(curriculum.data)


def counts(record: RunRecord) -> dict[str, dict[str, int]]:
    """Return how many units went in, came out and were quarantined, by `step.name.unit`."""
    return {
        f"{table.step}.{unit}": numbers
        for table in _tables(record)
        for unit, numbers in table.node.counts().items()
    }


def digests(record: RunRecord) -> dict[str, str]:
    """Return the digest of every table and checkpoint by its full name."""
    return {named.full_name: named.node.digest for named in record.named()}


def quarantined(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield every quarantined row as a dictionary.

    The keys are `step`, `picture`, `expression_id` (None if the whole picture is quarantined) and
    `reason`.
    """
    for table in _tables(record):
        if not any(numbers["quarantined"] for numbers in table.node.counts().values()):
            continue  # encoders write no quarantine table
        for row in table.node.quarantine().to_pylist():
            yield {
                "step": table.step,
                "picture": row["picture"],
                "expression_id": row["expression_id"],
                "reason": row["reason"],
            }


def _chosen(record: RunRecord) -> dict[str, Any] | None:
    chosen = record.chosen
    if chosen is None:
        return None
    facts = {"stage": chosen.stage, "by": chosen.by, "note": CHOSEN_BY[chosen.by]}
    return {**facts, "validation_mIoU": dict(chosen.scores)} if chosen.scores else facts


def _tables(record: RunRecord) -> Iterator[Named]:
    """Yield every table of the run once, under the first of its names."""
    seen: set[str] = set()
    for named in record.named():
        if named.node.num_buckets and named.node.digest not in seen:
            seen.add(named.node.digest)
            yield named


def _encoded(record: RunRecord) -> dict[str, int]:
    """Count how many pictures the frozen encoders encoded, and how many of them are different."""
    encoded = [tables for tables in record.data.values() if tables.has("features")]
    features = {tables.features for tables in encoded}
    pictures = {
        picture
        for node in {tables.samples for tables in encoded}
        for bucket in range(node.num_buckets)
        for picture in node.read(bucket, columns=["picture"])["picture"].to_pylist()
    }
    return {
        "encoded_pictures": sum(node.counts()["pictures"]["out"] for node in features),
        "unique_pictures": len(pictures),
    }


# ---------------------------------------------------------------- terminal


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the figures and costs of a finished run, its quarantined rows and its warnings."""
    title = f"{summary['name']}: held-out split"
    _print_figures(summary, console, title, ("mIoU", "oIoU", "P@0.5", "P@0.7"), costs=True)
    print_quarantine(summary["quarantine"], console, summary["quarantine_total"])
    for warning in summary["warnings"]:
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)


def print_evaluation(summary: dict[str, Any], console: Console) -> None:
    """Print every metric of the baselines and stages that were measured on a split."""
    first = next(iter(summary["baselines"]))
    sentences = summary["counts"][f"evaluate.{first}.expressions"]
    title = (
        f"{summary['name']}: {summary['split']} split, protocol {summary['protocol']}, "
        f"{sentences['out']:,} sentences"
    )
    metrics = tuple(METRICS)
    _print_figures(summary, console, title, metrics, costs=False)
    if sentences["quarantined"]:
        console.print(
            f"[yellow]{sentences['quarantined']:,} more[/] could not be measured: their picture or "
            "text was quarantined, see summary.json",
            highlight=False,
        )


def _print_figures(
    summary: dict[str, Any], console: Console, title: str, metrics: Sequence[str], *, costs: bool
) -> None:
    """Print the baselines, the stages with their gain over the best baseline, and the model."""
    best = summary["best_baseline"]
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for column in (*metrics, "gain", *(("epochs", "time") if costs else ())):
        table.add_column(column, justify="right")
    *_, last = summary["baselines"] or [None]
    for name, values in summary["baselines"].items():
        figures = (f"{values[metric]:.1f}" for metric in metrics)
        table.add_row(name, *figures, end_section=name == last)
    for stage in summary["stages"]:
        figures = (f"{stage[metric]:.1f}" for metric in metrics)
        gain = stage["mIoU"] - summary["baselines"][best]["mIoU"] if best else 0.0
        colour = "green" if gain > 0 else "red"
        table.add_row(
            stage["name"],
            *figures,
            f"[{colour}]{gain:+.1f}[/]" if best else "",
            *((str(stage["epochs"]), f"{stage['seconds']:.0f} s") if costs else ()),
        )
    console.print(table)
    chosen = summary["chosen"]
    if chosen and chosen["by"] != "last":
        console.print(f"model: {chosen['stage']}, {chosen['note']}", highlight=False)


def print_quarantine(rows: Sequence[dict[str, Any]], console: Console, total: int = 0) -> None:
    """Print how many rows were quarantined, and the reasons of the first five.

    `total` is their number if `rows` holds only some of them.
    """
    total, shown = total or len(rows), rows[:5]
    if not total:
        return
    console.print(f"[yellow]{total:,} quarantined[/] (left out of the run):", highlight=False)
    for row in shown:
        where = row["expression_id"] or row["picture"]
        line = f"  {row['step']}  {where}: {row['reason']}"
        console.print(line, highlight=False, markup=False)
    if total > len(shown):
        console.print(f"  ... and {total - len(shown):,} more", highlight=False)

"""What came of a run, as plain data (`summary.json`) and as a table on the terminal."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import ppt
from ppt.config import Curriculum
from ppt.metrics import TENTHS
from ppt.pipeline.record import RunRecord
from ppt.store import Node

MAX_QUARANTINE_ROWS = 100
"""How many quarantined rows the summary lists; their number is always whole."""

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

_STEPS = {
    "samples": "prepare",
    "ground_truth": "ground_truth",
    "features": "encode",
    "words": "encode_words",
    "phrases": "encode_phrases",
    "labels": "label",
    "results": "evaluate",
}


CHOSEN_BY = {
    "last": "the last stage",
    "pseudo_iou": "chosen by IoU with the validation split's pseudo labels: no ground truth",
    "truth": "chosen on ground truth: not weakly supervised",
}
"""What `model_selection` is in front of people."""


def summarise(record: RunRecord) -> dict[str, Any]:
    """The content of `summary.json`. mIoU, oIoU and P@X are percentages on `split`."""
    quarantine = list(quarantined(record))
    return {
        "name": record.curriculum.name,
        "seed": record.curriculum.seed,
        "versions": versions(),
        "split": record.split,
        "protocol": record.protocol.name,
        "baselines": {name: _baseline(record, name) for name in record.baselines},
        "stages": [
            {"name": s.name, **s.metrics, "epochs": s.num_epochs, "seconds": s.seconds}
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
    """Write the summary as JSON; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=2))
    return path


def versions() -> dict[str, str]:
    """Python's, ours, and those of the libraries that a result depends on."""
    libraries = {name: version(distribution) for name, distribution in _DISTRIBUTIONS.items()}
    return {"python": platform.python_version(), "ppt": ppt.__version__, **libraries}


def warnings_of(curriculum: Curriculum) -> Iterator[str]:
    """What makes the figures of a run worth nothing, though every step ran."""
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


def step_of(name: str) -> str:
    """The step that made a node, by the node's name in the record: labels.h.1 -> select.h.1."""
    kind, _, rest = name.partition(".")
    if name == "samples.d_ref":
        return "synthesise.d_ref"
    if kind == "labels" and rest.startswith("h."):
        return f"select.{rest}"
    return f"{_STEPS[kind]}.{rest}"


def counts(record: RunRecord) -> dict[str, dict[str, int]]:
    """By `step.name.unit`: how many went in, came out, were quarantined."""
    return {
        f"{step_of(name)}.{unit}": numbers
        for name, node in _tables(record)
        for unit, numbers in node.counts().items()
    }


def digests(record: RunRecord) -> dict[str, str]:
    """The digest of every table and checkpoint by its name."""
    return {name: node.digest for name, node in record.nodes.items()}


def quarantined(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Every quarantined row: step, picture, expression_id (None: the whole picture), reason."""
    for name, node in _tables(record):
        if not any(numbers["quarantined"] for numbers in node.counts().values()):
            continue  # encoders and evaluation write no quarantine table
        for row in node.quarantine().to_pylist():
            yield {
                "step": step_of(name),
                "picture": row["picture"],
                "expression_id": row["expression_id"],
                "reason": row["reason"],
            }


def best_baseline(baselines: dict[str, Any]) -> str | None:
    """The baseline with the highest mIoU; None without any."""
    return max(baselines, key=lambda name: baselines[name]["mIoU"], default=None)


def _baseline(record: RunRecord, name: str) -> dict[str, Any]:
    recipe = record.recipes.get(name)
    return {**record.baselines[name], **({"recipe": recipe.model_dump()} if recipe else {})}


def _chosen(record: RunRecord) -> dict[str, Any] | None:
    chosen = record.chosen
    if chosen is None:
        return None
    facts = {"stage": chosen.stage, "by": chosen.by, "note": CHOSEN_BY[chosen.by]}
    return {**facts, "validation_mIoU": dict(chosen.scores)} if chosen.scores else facts


def _tables(record: RunRecord) -> Iterator[tuple[str, Node]]:
    """Each bucketed node once: the same data under two names is the same node."""
    seen: set[str] = set()
    for name, node in record.nodes.items():
        if node.num_buckets and node.digest not in seen:
            seen.add(node.digest)
            yield name, node


def _encoded(record: RunRecord) -> dict[str, int]:
    """How often the frozen encoders ran, and on how many different pictures."""
    features = [node for _, node in _tables(record) if node.kind == "features"]
    pictures = {
        picture
        for node in features
        for bucket in range(node.num_buckets)
        for picture in node.read(bucket, columns=["picture"])["picture"].to_pylist()
    }
    return {
        "encoder_calls": sum(node.info().get("encoder_calls", 0) for node in features),
        "unique_pictures": len(pictures),
    }


# ---------------------------------------------------------------- terminal


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """A run's end: its figures with their cost; then what was quarantined."""
    title = f"{summary['name']}: held-out split"
    _print_figures(summary, console, title, ("mIoU", "oIoU", "P@0.5", "P@0.7"), costs=True)
    print_quarantine(summary["quarantine"], console, summary["quarantine_total"])
    for warning in summary["warnings"]:
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)


def print_evaluation(summary: dict[str, Any], console: Console) -> None:
    """Every metric of what was measured, and on what."""
    first = next(iter(summary["baselines"]))
    sentences = summary["counts"][f"evaluate.{first}.expressions"]
    title = (
        f"{summary['name']}: {summary['split']} split, protocol {summary['protocol']}, "
        f"{sentences['out']:,} sentences"
    )
    metrics = ("mIoU", "oIoU", *(f"P@0.{tenth}" for tenth in TENTHS))
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
    """Baselines, then stages with their gain over the best baseline, then which was chosen."""
    best = best_baseline(summary["baselines"])
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
    """How many rows were left out, and the reasons of the first; `total` where more are known of
    than are given."""
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

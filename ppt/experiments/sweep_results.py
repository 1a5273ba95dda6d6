"""The results of a sweep: a table on the terminal, `sweep.json`, `trials.csv` and a plot.

Trials are chosen by `pseudo_iou`, the agreement with the validation split's pseudo labels, which
needs no ground truth. `mIoU` is measured for the same model on the ground truth of the evaluation
split; it is reported, but nothing is chosen by it.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ppt.experiments.sweep import Sweep, Values
from ppt.store.disk import replacing

SUMMARY, TABLE, PICTURE = "sweep.json", "trials.csv", "importance.png"


@dataclass(frozen=True)
class Trial:
    """The result of a trial. Figures are percentages, or NaN if no stage was measured."""

    name: str
    values: Values
    status: Literal["done", "stopped", "failed"]  # `stopped`: by the scheduler
    pseudo_iou: float  # of the trial's best stage by this figure
    mIoU: float  # of the same stage, on the evaluation split's ground truth
    stage: str | None  # the name of that stage
    epochs: int  # completed epochs, including those that another trial trained
    num_epochs: int  # epochs of the whole curriculum
    reached: Mapping[str, tuple[str, int]]  # by training: checkpoint's digest, epochs
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class SweepRecord:
    """A sweep with its trials and its numbers of stage-epochs.

    `trained` counts the epochs that the trainings recorded in the store since the sweep began.
    `distinct` and `without_sharing` count the epochs that the trials completed: `distinct` counts
    each checkpoint once, and `without_sharing` counts it for every trial that used it.
    """

    sweep: Sweep
    folder: str  # a local folder
    trials: Sequence[Trial]
    trained: int
    distinct: int
    without_sharing: int

    @property
    def best_weak(self) -> Trial | None:
        """The trial to use: the one that agrees best with pseudo labels."""
        return _best(self.trials, lambda trial: trial.pseudo_iou)

    @property
    def best_truth(self) -> Trial | None:
        """The best trial on the evaluation split's ground truth, for comparison only."""
        return _best(self.trials, lambda trial: trial.mIoU)

    @property
    def shared(self) -> str:
        """A line with the number of trained stage-epochs, and their number without sharing."""
        line = f"{self.trained} stage-epochs trained, {self.without_sharing} without sharing"
        found = self.distinct - self.trained
        return f"{line} ({found} were trained before)" if found > 0 else line


def _best(trials: Sequence[Trial], by: Callable[[Trial], float]) -> Trial | None:
    measured = [trial for trial in trials if not math.isnan(by(trial))]
    return max(measured, key=by, default=None)


# ---------------------------------------------------------------- files


def write_sweep(record: SweepRecord, facts: Mapping[str, Any]) -> list[Path]:
    """Write the sweep's files into its folder, and return their paths.

    `facts` are further keys of `sweep.json`.
    """
    folder = Path(record.folder)
    paths = [folder / name for name in (SUMMARY, TABLE, PICTURE)]
    with replacing(paths[0]) as temporary:  # `--resume` needs the facts
        temporary.write_text(json.dumps({**facts, **summarise_sweep(record)}, indent=2))
    _write_table(record, paths[1])
    draw_importance(record).savefig(paths[2], dpi=120)
    return paths


def summarise_sweep(record: SweepRecord) -> dict[str, Any]:
    """Return the content of `sweep.json`. A figure that was not measured is null."""
    weak, truth = record.best_weak, record.best_truth
    return {
        "sweep": record.sweep.model_dump(mode="json"),
        "stage_epochs": {
            "trained": record.trained,
            "distinct": record.distinct,
            "without_sharing": record.without_sharing,
        },
        "best_by_pseudo_iou": weak.name if weak else None,
        "best_by_truth": truth.name if truth else None,
        "trials": [
            {key: _number(value) for key, value in asdict(trial).items()} for trial in record.trials
        ],
    }


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _write_table(record: SweepRecord, path: Path) -> None:
    columns = ("status", "pseudo_iou", "mIoU", "stage", "epochs", "num_epochs", "seconds")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", *record.sweep.space, *columns])
        for trial in record.trials:
            values = [trial.values[key] for key in record.sweep.space]
            writer.writerow([trial.name, *values, *(getattr(trial, name) for name in columns)])


def draw_importance(record: SweepRecord) -> Figure:
    """Draw a panel for each key with every trial, and with the mean of the trials of each value.

    Trials that the scheduler stopped are left out, because they trained for fewer epochs.
    """
    trials = [t for t in record.trials if t.status == "done" and not math.isnan(t.pseudo_iou)]
    keys = list(record.sweep.space)
    figure = Figure(figsize=(max(3.2 * len(keys), 4.8), 3.2), layout="constrained")
    for i, (key, axes) in enumerate(
        zip(keys, figure.subplots(1, len(keys), sharey=True, squeeze=False)[0], strict=True)
    ):
        means = mean_by_value(trials, key)
        places = {value: at for at, value in enumerate(means)}
        axes.scatter(
            [places[str(t.values[key])] for t in trials],
            [t.pseudo_iou for t in trials],
            s=18,
            color="0.6",
            label="trial",
        )
        axes.plot(list(places.values()), list(means.values()), "o-", color="C0", label="mean")
        axes.set_xticks(list(places.values()), list(means), rotation=30 if len(means) > 5 else 0)
        axes.margins(x=0.2)
        spread = max(means.values()) - min(means.values()) if means else 0.0
        axes.set_title(f"{_short(key)}\nmeans differ by {spread:.1f}", fontsize=9)
        axes.grid(alpha=0.3)
        if i == 0:
            axes.set_ylabel("pseudo-IoU (%)")
            axes.legend(fontsize=8)
    return figure


def mean_by_value(trials: Sequence[Trial], key: str) -> dict[str, float]:
    """Return the mean pseudo-IoU of the trials for each value of a key, in percent.

    Numbers are sorted; other values keep the order of the trials.
    """
    groups: dict[Any, list[float]] = {}
    order: dict[str, Any] = {}
    for trial in trials:
        value = trial.values[key]
        order[str(value)] = value
        groups.setdefault(str(value), []).append(trial.pseudo_iou)
    numbers = all(isinstance(value, int | float) for value in order.values())
    names = sorted(groups, key=lambda name: order[name]) if numbers else list(groups)
    return {name: sum(groups[name]) / len(groups[name]) for name in names}


def _short(key: str) -> str:
    """Return the last two parts of a key, which are enough to recognise it."""
    return ".".join(key.split(".")[-2:])


# ---------------------------------------------------------------- terminal


def print_sweep(record: SweepRecord, console: Console) -> None:
    """Print every trial, with the best by pseudo-IoU first, and how much sharing saved."""
    weak, truth = record.best_weak, record.best_truth
    table = Table(title=f"{record.sweep.name}: {len(record.trials)} trials", title_justify="left")
    table.add_column("trial")
    for key in record.sweep.space:
        name = _short(key).replace(".", "\n")
        table.add_column(name, justify="right", overflow="fold")
    for column in ("pseudo-IoU", "mIoU\n(truth)", "epochs"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("model", overflow="fold")
    table.add_column("", overflow="fold")
    for trial in sorted(record.trials, key=_rank):
        marks = [
            *(["best by pseudo-IoU"] if trial is weak else []),
            *(["best by truth"] if trial is truth else []),
            *([trial.status] if trial.status != "done" else []),
        ]
        table.add_row(
            trial.name,
            *(_shown(trial.values[key]) for key in record.sweep.space),
            _shown(trial.pseudo_iou),
            _shown(trial.mIoU),
            str(trial.epochs)
            if trial.status == "done"
            else f"{trial.epochs} of {trial.num_epochs}",
            trial.stage or "",
            ", ".join(marks),
            style="bold" if trial is weak else None,
        )
    console.print(table)
    if weak and truth:
        console.print(
            f"best by pseudo-IoU (the validation split's labels, no ground truth): {weak.name}\n"
            f"best by truth (evaluation split; to compare, not to choose): {truth.name}",
            highlight=False,
        )
    for trial in record.trials:
        if trial.error:
            console.print(f"[red]{trial.name} failed:[/] ", end="")
            console.print(trial.error, highlight=False, markup=False)
    console.print(record.shared, highlight=False)


def _rank(trial: Trial) -> float:
    """Return the position of a trial in the table; trials without a figure come last."""
    return math.inf if math.isnan(trial.pseudo_iou) else -trial.pseudo_iou


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}" if abs(value) < 1 else f"{value:.1f}"
    return str(value)

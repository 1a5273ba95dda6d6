"""What a sweep tells: which trial is best by what, its files, what a trial reports."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from PIL import Image
from rich.console import Console

from ppt.config import load_curriculum
from ppt.experiments.sweep import Sweep
from ppt.experiments.sweep_results import (
    SweepRecord,
    Trial,
    mean_by_value,
    print_sweep,
    write_sweep,
)
from ppt.experiments.trials import Reporter
from ppt.store.nodes import Store
from ppt.tracking.record import StageRecord

ROOT = Path(__file__).parents[2]
QUERIES, RATE = "model.point_generator.num_queries", "training.learning_rate"


def trial(name: str, queries: int, rate: float, pseudo_iou: float, truth: float) -> Trial:
    return Trial(
        name=name,
        values={QUERIES: queries, RATE: rate},
        status="done",
        pseudo_iou=pseudo_iou,
        mIoU=truth,
        stage="ris_joint",
        epochs=6,
        num_epochs=6,
        reached={"a": ("d0", 2), "b": (f"d{name}", 4)},
        seconds=1.0,
    )


TRIALS = [
    trial("00", 16, 0.01, 60.0, 40.0),
    trial("01", 8, 0.01, 70.0, 30.0),
    replace(trial("02", 8, 0.001, math.nan, math.nan), status="failed", epochs=0, error="no disk"),
    replace(trial("03", 16, 0.001, 20.0, 20.0), status="stopped", epochs=3),
    trial("04", 8, 0.001, 50.0, 35.0),
]


def record(folder: Path, **changes: Any) -> SweepRecord:
    space = {QUERIES: [16, 8], RATE: [0.01, 0.001]}
    sweep = Sweep.model_validate({"name": "s", "curriculum": "c.yaml", "space": space})
    facts = {"trained": 18, "distinct": 18, "without_sharing": 21}
    return SweepRecord(sweep, str(folder), TRIALS, **(facts | changes))


def test_the_weak_criterion_and_the_truth_may_disagree(tmp_path: Path) -> None:
    ours = record(tmp_path)
    assert ours.best_weak is TRIALS[1]
    assert ours.best_truth is TRIALS[0]
    console = Console(width=200, record=True)
    print_sweep(ours, console)
    lines = console.export_text().splitlines()
    first, last = (
        next(i for i, line in enumerate(lines) if f" {n} " in line) for n in ("01", "02")
    )
    assert "best by pseudo-IoU" in lines[first] and first < last
    assert any("00" in line and "best by truth" in line for line in lines)
    assert any("03" in line and "3 of 6" in line and "stopped" in line for line in lines)
    assert "02 failed: no disk" in lines
    assert lines[-1] == "18 stage-epochs trained, 21 without sharing"


def test_a_narrow_terminal_cuts_nothing_off(tmp_path: Path) -> None:
    console = Console(width=80, record=True)
    print_sweep(record(tmp_path), console)
    assert "…" not in console.export_text()


def test_what_was_trained_before_is_said(tmp_path: Path) -> None:
    line = "10 stage-epochs trained, 21 without sharing (8 were trained before)"
    assert record(tmp_path, trained=10).shared == line


def test_the_files(tmp_path: Path) -> None:
    ours = record(tmp_path)
    summary, table, picture = write_sweep(ours, {"started": 1.0})
    told = json.loads(summary.read_text())
    assert told["started"] == 1.0
    assert (told["best_by_pseudo_iou"], told["best_by_truth"]) == ("01", "00")
    assert told["trials"][2]["pseudo_iou"] is None
    assert told["stage_epochs"] == {"trained": 18, "distinct": 18, "without_sharing": 21}
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["00", "01", "02", "03", "04"]
    assert rows[1][QUERIES] == "8" and float(rows[1]["pseudo_iou"]) == 70.0
    with Image.open(picture) as image:
        image.load()
        assert image.width > 400


def test_means_by_value_are_in_the_values_order() -> None:
    done = [t for t in TRIALS if t.status == "done"]
    assert list(mean_by_value(done, QUERIES).items()) == [("8", 60.0), ("16", 60.0)]
    assert list(mean_by_value(done, RATE).items()) == [("0.001", 50.0), ("0.01", 65.0)]


def test_a_trial_reports_its_best_stage_and_how_far_it_is(tmp_path: Path) -> None:
    """Nothing before a stage is measured; no stale figure at the epoch that ends a stage."""
    curriculum = load_curriculum(
        ROOT / "curricula" / "quickstart.yaml",
        ["stages.semantic_alignment.num_epochs=2", "stages.ris_object_centric.num_epochs=2"],
    )
    told: list[dict[str, Any]] = []
    reporter = Reporter(curriculum, told.append)
    store = Store(str(tmp_path))
    for step, score in (("semantic_alignment", 50.0), ("ris_object_centric", 40.0)):
        node = store.node("checkpoints", step)
        for epoch in (1, 2):
            reporter.epoch(step, node, epoch)
        facts = {"name": step, "checkpoint": node, "num_epochs": 2, "metrics": {"mIoU": score / 2}}
        reporter.stage(cast(StageRecord, SimpleNamespace(**facts)), score)
    assert [(t["epochs"], t["measured"], t["pseudo_iou"]) for t in told] == [
        (2, True, 50.0),
        (3, False, 50.0),
        (4, True, 50.0),
    ]
    assert all(t["stage"] == "semantic_alignment" and t["mIoU"] == 25.0 for t in told)
    assert [n for _, n in told[-1]["reached"].values()] == [2, 2]

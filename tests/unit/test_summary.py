"""summary.json: its keys, its sums, and the table on the terminal."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args
from unittest.mock import ANY

import pyarrow as pa
import pytest
from common import nodes_of
from rich.console import Console
from run_record import STAGES, build_record

from ppt.config import ConfigError, load_curriculum
from ppt.config.curriculum import RUN_NAMES_IN_USE, STAGE_NAMES_IN_USE
from ppt.curriculum.choice import choose_stage
from ppt.curriculum.measurements import BASELINES
from ppt.evaluation.protocols import LAVT, PROTOCOLS
from ppt.steps.runner import COMMANDS
from ppt.steps.uses import USES
from ppt.store.checksums import unseal
from ppt.store.locks import LOCKS
from ppt.store.nodes import BucketOutput, Count
from ppt.store.schema import QUARANTINE, SAMPLES
from ppt.tracking.record import DataName, RunRecord
from ppt.tracking.summary import (
    MAX_QUARANTINE_ROWS,
    print_evaluation,
    print_summary,
    summarise,
    warnings_of,
    write_summary,
)

CURRICULA = Path(__file__).parents[2] / "curricula"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return build_record(tmp_path_factory.mktemp("runs"), num_pictures=3)


def test_no_stage_and_no_run_has_the_name_of_something_else() -> None:
    stages = {*BASELINES, *get_args(DataName), *COMMANDS, *PROTOCOLS} - {"ours"}
    assert stages <= set(STAGE_NAMES_IN_USE)
    assert {"store", USES, LOCKS} <= set(RUN_NAMES_IN_USE)


def test_figures(record: RunRecord) -> None:
    summary = summarise(record)
    assert summary["name"] == "tiny" and summary["seed"] == 7
    assert summary["published_image_size"] is None
    assert list(summary["baselines"]) == ["clip_sam_published", "clip_sam_best"]
    assert summary["baselines"]["clip_sam_best"]["recipe"]["method"] == "near"
    assert summary["baselines"]["clip_sam_published"]["recipe"]["method"] == "surgery"
    assert summary["best_baseline"] == "clip_sam_best"
    assert [stage["name"] for stage in summary["stages"]] == list(STAGES)
    for row in [*summary["baselines"].values(), *summary["stages"]]:
        assert {"mIoU", "oIoU", "P@0.3", "P@0.5", "P@0.7", "P@0.9"} <= set(row)
    assert summary["stages"][0]["epochs"] == 3
    assert summary["seconds"] == {"prepare": 1.5, "train": 20.0}
    named = {"python", "ppt", "torch", "torchvision", "ray", "mlflow", "open_clip"}
    assert named | {"segment_anything", "numpy", "pyarrow"} == set(summary["versions"])


def test_counts_add_up(record: RunRecord) -> None:
    summary = summarise(record)
    counts = summary["counts"]
    assert counts["prepare.referring.pictures"] == {"in": 4, "out": 3, "quarantined": 1}
    assert counts["prepare.referring.expressions"] == {"in": 9, "out": 6, "quarantined": 3}
    assert {
        "encode.evaluation.pictures",
        "encode_phrases.evaluation.texts",
        "label.h.expressions",
        "label.d_sem.expressions",
        "select.h.2.expressions",
        "synthesise.d_ref.pictures",
        "ground_truth.evaluation.expressions",
        "evaluate.ris_joint.expressions",
    } <= set(counts)
    for count in counts.values():
        assert count["in"] == count["out"] + count["quarantined"]
    # d_ref's labels stand in the node of its samples: one step, counted once.
    assert not any(name.startswith("label.d_ref") for name in counts)
    assert summary["encoded_pictures"] == summary["unique_pictures"] == 3 * 3


def test_quarantine_rows(record: RunRecord) -> None:
    summary = summarise(record)
    assert summary["quarantine_total"] == 2
    whole, sentence = sorted(summary["quarantine"], key=lambda row: row["picture"])
    assert whole["expression_id"] is None and "1x1" in whole["reason"]
    assert sentence == {
        "step": "prepare.referring",
        "picture": "spaces.jpg",
        "expression_id": "spaces-0",
        "reason": "text <b>is</b> only spaces",
    }


def test_a_long_quarantine_is_cut_and_counted(record: RunRecord) -> None:
    number = MAX_QUARANTINE_ROWS + 20
    rows = [
        {"picture": f"{i}.jpg", "expression_id": None, "num_expressions": 1, "reason": "broken"}
        for i in range(number)
    ]
    tables = {"data": SAMPLES.empty_table(), "quarantine": pa.Table.from_pylist(rows, QUARANTINE)}
    store = record.data["referring"].samples.store
    node = store.node("samples", "all broken", buckets=1)
    node.write_bucket(0, BucketOutput(tables, {"pictures": Count(number, 0, number)}))
    broken = RunRecord(record.curriculum, record.folder)
    broken.data["validation"].samples = node
    summary = summarise(broken)
    assert summary["quarantine_total"] == number
    assert len(summary["quarantine"]) == MAX_QUARANTINE_ROWS
    console = Console(width=100, record=True, file=io.StringIO())
    print_summary(summary, console)
    assert f"and {number - 5} more" in console.export_text()


def test_digests_name_every_node(record: RunRecord) -> None:
    digests = summarise(record)["digests"]
    assert digests == {name: node.digest for name, node in nodes_of(record).items()}
    assert "checkpoints.ris_joint" in digests


@pytest.mark.parametrize(
    ("node", "step"),
    [
        ("samples.referring", "prepare.referring"),
        ("samples.d_ref", "synthesise.d_ref"),
        ("labels.h", "label.h"),
        ("labels.h.2", "select.h.2"),
        ("results.refinement.1", "evaluate.refinement.1"),
    ],
)
def test_steps(record: RunRecord, node: str, step: str) -> None:
    (found,) = [named.step for named in record.named() if named.full_name == node]
    assert found == step


def test_written_as_json(record: RunRecord, tmp_path: Path) -> None:
    summary = summarise(record)
    path = write_summary(summary, tmp_path / "new" / "summary.json")
    assert unseal(path.read_bytes()) == summary
    assert json.loads(path.read_text()) == {**summary, "checksum": ANY}


def test_table_on_the_terminal(record: RunRecord) -> None:
    summary = summarise(record)
    console = Console(width=100, record=True, file=io.StringIO())
    print_summary(summary, console)
    text = console.export_text()
    lines = [line for line in text.splitlines() if line.strip()]
    order = [
        next(i for i, line in enumerate(lines) if name in line)
        for name in ("clip_sam_published", "clip_sam_best", *STAGES)
    ]
    assert order == sorted(order)
    gain = summary["stages"][-1]["mIoU"] - summary["baselines"]["clip_sam_best"]["mIoU"]
    assert f"{gain:+.1f}" in text
    assert "2 quarantined" in text and "spaces-0: text <b>is</b> only spaces" in text


def shown(record: RunRecord, how=print_summary) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    how(summarise(record), console)
    return console.export_text()


def test_the_chosen_stage_and_what_chose_it(record: RunRecord) -> None:
    scores = dict(zip(STAGES, (50.0, 70.0, 70.0, 60.0), strict=True))
    last = replace(record, chosen=choose_stage("last", list(STAGES)))
    assert summarise(record)["chosen"] is None
    assert summarise(last)["chosen"] == {
        "stage": "refinement.2",
        "by": "last",
        "note": "the last stage",
    }
    assert "model:" not in shown(last)
    for by, note in (("pseudo_iou", "no ground truth"), ("truth", "not weakly supervised")):
        chosen = replace(record, chosen=choose_stage(by, list(STAGES), scores))
        facts = summarise(chosen)["chosen"]
        assert facts["stage"] == "refinement.1"  # of two equal ones the later
        assert facts["by"] == by and note in facts["note"]
        assert facts["validation_mIoU"] == scores
        assert f"model: refinement.1, {facts['note']}" in shown(chosen)


def test_nothing_to_choose_by_is_told() -> None:
    with pytest.raises(ConfigError, match="'pseudo_iou' nothing of the validation split"):
        choose_stage("pseudo_iou", ["a", "b"], {"a": float("nan"), "b": float("nan")})


def test_evaluation_on_the_terminal(record: RunRecord) -> None:
    text = shown(replace(record, split="validation", protocol=LAVT), print_evaluation)
    assert "tiny: validation split, protocol lavt, 6 sentences" in text
    for name in ("mIoU", "oIoU", "P@0.3", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "gain"):
        assert name in text
    rows = [line.split() for line in text.splitlines()]
    for name, metrics in record.metrics().items():
        figures = next(row for row in rows if name in row)
        assert f"{metrics['mIoU']:.1f}" in figures and f"{metrics['P@0.9']:.1f}" in figures


def test_figures_that_mean_nothing_say_so(record: RunRecord, tmp_path: Path) -> None:
    assert not list(warnings_of(load_curriculum(CURRICULA / "quickstart.yaml")))
    roots = [f"data.{name}.root={tmp_path}" for name in ("referring", "validation", "evaluation")]
    roots.append(f"data.object_centric.root={tmp_path}")
    photos = load_curriculum(CURRICULA / "photos.yaml", roots)
    photos = photos.model_copy(update={"stages": {}})  # nothing is trained, no picture is shared
    (embedded,) = warnings_of(photos)
    assert "model.clip and model.sam: the embedded world's" in embedded
    random = ["model.clip.name=ViT-B-16", "model.clip.weights=random", "model.sam.name=vit_b"]
    (untrained,) = warnings_of(
        load_curriculum(
            CURRICULA / "photos.yaml", [*roots, *random, "model.sam.weights=sam_vit_b.pth"]
        ).model_copy(update={"stages": {}})
    )
    assert "the weights of clip are random" in untrained

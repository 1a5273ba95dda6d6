"""`ppt ablate`: rows and seeds share what they have in common; the page, table and MLflow."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from common import (
    QUICKSTART,
    ROOT,
    SMALL,
    TINY,
    count_encoded,
    encodings_per_picture,
    here,
    run_here,
)
from mlflow import MlflowClient
from typer.testing import CliRunner

from ppt.config import load_row
from ppt.experiments.ablation import load_rows, run_ablation
from ppt.jobs.cli import app
from ppt.tracking.record import RunRecord

ROWS = ROOT / "curricula" / "ablations" / "table3"


def made_from(store: Path, kind: str, parent: str) -> set[str]:
    """The nodes of a kind that have a node, by its digest, among their parents."""
    paths = (store / "store" / kind).glob("*/manifest.json")
    manifests = [json.loads(path.read_text()) for path in paths]
    return {m["digest"] for m in manifests if parent in m["made_from"]["parents"].values()}


def write_rows(folder: Path, *numbers: int) -> Path:
    """A folder with some of the nine rows."""
    folder.mkdir()
    for number in numbers:
        text = (ROWS / f"row{number}.yaml").read_text()
        text = text.replace("base: ../../quickstart.yaml", f"base: {QUICKSTART}")
        (folder / f"row{number}.yaml").write_text(text)
    return folder


def test_rows_share_their_beginnings(
    finished: RunRecord, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rows = write_rows(tmp_path / "rows", 1, 3, 4)
    checkpoints = store / "store" / "checkpoints"
    before = set(checkpoints.iterdir())
    overrides = [f"store={store}", *SMALL[1:], "stages.ris_joint.num_epochs=2"]
    result = CliRunner().invoke(app, ["ablate", str(rows), "--local", *overrides])
    assert result.exit_code == 0, result.output
    # Row 3 is 2 epochs, row 4 those and 2 + 2 more; all but its last stage are the finished run's.
    assert "6 stage-epochs trained, 8 without sharing" in result.output
    assert len(set(checkpoints.iterdir()) - before) == 1

    folder = store / "rows"
    lines = list(csv.DictReader((folder / "table.csv").open()))
    assert [line["row"] for line in lines] == ["row1", "row1, best recipe", "row3", "row4"]
    for line in lines:
        outcomes = ("found", "part", "too much", "wrong object", "nothing")
        assert sum(int(line[what]) for what in outcomes) == 24
        assert float(line["P@0.5"]) == pytest.approx(100 * int(line["found"]) / 24, abs=0.01)
    summaries = [json.loads((store / f"row{n}.seed0" / "summary.json").read_text()) for n in (3, 4)]
    shared = "checkpoints.semantic_alignment"
    ours = finished.stages[0].checkpoint.digest
    assert summaries[0]["digests"][shared] == summaries[1]["digests"][shared] == ours
    assert float(lines[2]["mIoU"]) == pytest.approx(summaries[0]["stages"][-1]["mIoU"], abs=0.001)

    page = (folder / "report.html").read_text()
    assert "Semantic Learning" in page and "h.1" in page and "{{" not in page
    told_once = '<tr><td class="name">all</td><td class="name">{}</td><td class="name">{}</td>'
    assert told_once.format("", "d_sem") in page and told_once.format("h", "h_sem") in page
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("ppt")
    runs = client.search_runs([experiment.experiment_id], "tags.`ppt.kind` = 'ablation'")
    assert runs[0].data.metrics["stage_epochs"] == 6
    assert runs[0].data.metrics["row4/mIoU"] == pytest.approx(float(lines[3]["mIoU"]), abs=0.001)
    assert runs[0].data.metrics["stage_epochs_without_sharing"] == 8
    nested = f"tags.`mlflow.parentRunId` = '{runs[0].info.run_id}'"
    children = client.search_runs([experiment.experiment_id], nested)
    names = {child.info.run_name for child in children}
    assert names == {f"row{n}.seed0" for n in (1, 3, 4)}

    # The diagnosis: candidates of the held-out sentences, prompts without their negative points.
    assert "By the number of candidates" in page and "What negative points do" in page
    evaluation = finished.data["evaluation"].samples.digest
    (labels,) = made_from(store, "labels", evaluation)
    h = summaries[0]["digests"]["labels.h"]
    assert made_from(store, "checkpoints", h)  # what is trained on is among the parents
    used = {digest for summary in summaries for digest in summary["digests"].values()}
    assert labels not in used and not made_from(store, "checkpoints", labels)
    for summary in summaries:
        results = summary["digests"][f"results.{summary['stages'][-1]['name']}"]
        files = (store / "store" / "results" / results).glob("data-*.parquet")
        rows_of_it = pa.concat_tables(pq.read_table(file) for file in files).to_pylist()
        mean = sum(row["iou"] for row in rows_of_it) / len(rows_of_it)
        assert len(rows_of_it) == 24
        assert 100 * mean == pytest.approx(summary["stages"][-1]["mIoU"])
        for row in rows_of_it:
            if 0 not in row["point_labels"]:
                assert row["iou_without"] == row["iou"]


def test_without_select_the_whole_expression_names_the_referent(
    finished: RunRecord, store: Path
) -> None:
    """Row 2: its referents are what CLIP and SAM make of whole expressions."""
    row2 = load_row(ROWS / "row2.yaml", [*SMALL, f"store={store}"])
    without_select = run_here(row2, until="label")
    candidates = finished.data["referring"].labels
    assert without_select.candidates == candidates  # shared
    undecided, guessed = (
        node.read_all().to_pylist()
        for node in (candidates, without_select.data["referring"].labels)
    )
    num_guessed = 0
    for row, guess in zip(undecided, guessed, strict=True):
        alone = row["source"] == "h_sem"
        referents = [candidate["is_referent"] for candidate in guess["candidates"]]
        assert sum(referents) <= 1 and (not alone or referents == [1])
        num_guessed += not alone and sum(referents)
    assert num_guessed > 0.8 * sum(row["source"] == "h_ref" for row in undecided)


def test_three_seeds_encode_every_picture_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rows = write_rows(tmp_path / "rows", 3)
    curricula = load_rows(rows, [*TINY[1:], f"store={tmp_path}"], None, [0, 1, 2])
    encoded = count_encoded(monkeypatch)
    ablation = run_ablation("rows", curricula, lambda curriculum: nullcontext(here(curriculum)))
    assert ablation.seeds == [0, 1, 2]
    assert (ablation.stage_epochs, ablation.stage_epochs_unshared) == (3, 3)  # nothing in common
    (line,) = ablation.lines
    figures = [line.by_seed[seed].metrics["mIoU"] for seed in (0, 1, 2)]
    assert line.mean("mIoU") == pytest.approx(sum(figures) / 3)
    assert len(set(figures)) > 1 and line.spread("mIoU") > 0

    num_pictures = 16 + 16 + 4 + 4 + 8
    assert encodings_per_picture(tmp_path) == 1.00
    assert encoded == dict.fromkeys(("clip", "sam"), num_pictures)  # called for each one only

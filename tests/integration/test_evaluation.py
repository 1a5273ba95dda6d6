"""Evaluation of a finished run: equal to other people's arithmetic, exact over actors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from common import QUICKSTART, SMALL, figures, here, nodes_of, run_here, small
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from ppt.config import ConfigError
from ppt.curriculum.finished import evaluate_curriculum
from ppt.curriculum.inputs import split_of
from ppt.distributed.actors import ActorPool
from ppt.evaluation.protocols import OURS
from ppt.jobs.cli import app
from ppt.models.confidence import fit_calibration
from ppt.serving.stored_checkpoint import open_checkpoint
from ppt.steps.evaluate import EvaluateCheckpoint, EvaluateRecipe, metrics_of
from ppt.steps.inference import predict_expressions, trained
from ppt.store.arrays import from_tensors, to_tensors
from ppt.store.nodes import BucketOutput, Store
from ppt.toybox import world
from ppt.tracking.record import RunRecord

SEED = 40  # of the quickstart's evaluation world
TENTHS = (3, 5, 6, 7, 8, 9)


def truth_of(row: dict) -> np.ndarray:
    """uint8 [96, 96] of a sentence, drawn anew: no table of the run is read."""
    scene = world.scene(SEED, int(row["picture"].rpartition("-")[2]))
    expression = scene.expressions[int(row["expression_id"].rpartition("-")[2])]
    assert expression.text == row["text"]
    return scene.objects[expression.target].mask.astype(np.uint8)


def measured(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The metrics of (prediction, truth) by numpy alone."""
    counts = np.array([((p & t).sum(), (p | t).sum()) for p, t in pairs], np.int64)
    ious = counts[:, 0] / counts[:, 1]
    precision = {f"P@0.{t}": 100 * (ious >= t / 10).mean() for t in TENTHS}
    overall = 100 * counts[:, 0].sum() / counts[:, 1].sum()
    return {"mIoU": 100 * ious.mean(), "oIoU": overall, **precision}


def results_in(record: RunRecord, *folders: str) -> dict[str, list[dict]]:
    folder = Path(record.folder).joinpath("results", *folders)
    return {path.stem: pq.read_table(path).to_pylist() for path in folder.glob("*.parquet")}


def evaluate(*arguments: object) -> str:
    command = ["evaluate", str(QUICKSTART), *SMALL, "--local", *map(str, arguments)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_every_sentence_is_in_the_files_with_its_figures(finished: RunRecord) -> None:
    """Masks of the Parquet files against truths drawn anew: numpy, and pycocotools' IoU."""
    files = results_in(finished)
    assert set(files) == set(finished.metrics())
    for name, rows in files.items():
        assert len(rows) == len({row["expression_id"] for row in rows}) == 2 * 12
        pairs = [(coco.decode(row["mask"]), truth_of(row)) for row in rows]
        assert finished.metrics()[name] == pytest.approx(measured(pairs), abs=1e-9)
        for row, (_, truth) in zip(rows, pairs, strict=True):
            rle = coco.encode(np.asfortranarray(truth))
            assert row["iou"] == pytest.approx(coco.iou([row["mask"]], [rle], [0])[0, 0])


def test_two_actors_are_one_process(pool: ActorPool, finished: RunRecord, tmp_path: Path) -> None:
    """The same rows, bit by bit, and the same sums: three buckets over two actors and in one."""
    last = finished.stages[-1]
    step = EvaluateCheckpoint(
        split_of(finished, "evaluation"),
        finished.curriculum.model,
        OURS,
        "x",
        last.checkpoint,
        last.evidence,
    )
    together = step.node(Store(str(tmp_path)))
    assert together.digest == last.results.digest
    pool.make(together, step)
    assert len(pool.actors) == 2
    assert together.num_buckets == 3
    for bucket in range(3):
        assert together.read(bucket).equals(last.results.read(bucket))
    assert metrics_of(together) == last.metrics


def test_an_empty_prediction_counts_as_0(finished: RunRecord, tmp_path: Path) -> None:
    """CLIP sees nothing anywhere: no points, no mask, and every sentence is still there."""
    split, curriculum = split_of(finished, "evaluation"), small(tmp_path)
    buckets = split.phrases.num_buckets
    blind = Store(str(tmp_path)).node("phrases", {"blind": True}, buckets=buckets)
    for bucket in range(blind.num_buckets):
        table = split.phrases.read(bucket)
        field = table.schema.field("embedding")
        zeros = to_tensors(np.zeros_like(from_tensors(table["embedding"])))
        column = table.schema.get_field_index("embedding")
        blind.write_bucket(bucket, BucketOutput({"data": table.set_column(column, field, zeros)}))
    step = EvaluateRecipe(
        replace(split, phrases=blind), curriculum.model, OURS, "blind", curriculum.labels.referring
    )
    results = here(curriculum).run(step)
    rows = results.read_all().to_pylist()
    assert len(rows) == 2 * 12 and all(row["iou"] == 0 and row["union"] > 0 for row in rows)
    assert set(metrics_of(results).values()) == {0.0}


def test_lavt(finished: RunRecord, store: Path) -> None:
    text = evaluate(f"store={store}", "--protocol", "lavt", "--stage", "ris_joint")
    assert "small: evaluation split, protocol lavt, 24 sentences" in text
    files = results_in(finished, "lavt")
    assert set(files) == {*finished.baselines, "ris_joint"}
    ours = {row["expression_id"]: row for row in results_in(finished)["ris_joint"]}
    pairs = []
    for row in files["ris_joint"]:
        assert row["mask"] == ours[row["expression_id"]]["mask"]  # only the comparison differs
        pair = [
            np.asarray(Image.fromarray(mask).resize((480, 480), Image.Resampling.NEAREST))
            for mask in (coco.decode(row["mask"]), truth_of(row))
        ]
        assert row["intersection"] == (pair[0] & pair[1]).sum()
        pairs.append((pair[0], pair[1]))
    metrics = measured(pairs)
    assert f"{metrics['mIoU']:.1f}" in text and f"{metrics['oIoU']:.1f}" in text


def test_cris(finished: RunRecord, store: Path) -> None:
    """The first sentence of each object, and a mask that is nowhere smaller than ours."""
    evaluate(f"store={store}", "--protocol", "cris", "--stage", "semantic_alignment")
    files, ours = results_in(finished, "cris"), results_in(finished)
    for name in ("clip_sam_best", "semantic_alignment"):
        by_id = {row["expression_id"]: row for row in ours[name]}
        objects, first = set(), []
        for row in ours[name]:
            target = row["picture"], truth_of(row).tobytes()
            if target not in objects:
                first.append(row["expression_id"])
            objects.add(target)
        assert [row["expression_id"] for row in files[name]] == first
        grown = 0
        for row in files[name]:
            mask, our_mask = (
                coco.decode(row["mask"]),
                coco.decode(by_id[row["expression_id"]]["mask"]),
            )
            assert (mask >= our_mask).all()
            grown += int(mask.sum()) - int(our_mask.sum())
        assert grown > 0


def test_the_validation_split(finished: RunRecord, store: Path) -> None:
    text = evaluate(f"store={store}", "--split", "validation")
    assert "small: validation split, protocol ours, 12 sentences" in text
    files = results_in(finished, "validation")
    assert set(files) == {*finished.baselines, *(stage.name for stage in finished.stages)}
    pictures = {row["picture"] for rows in files.values() for row in rows}
    assert pictures == {f"scene-3-{i:06d}" for i in range(6)}


def test_a_baseline_needs_nothing_trained(finished: RunRecord, store: Path) -> None:
    untrained = small(store, "stages.semantic_alignment.num_epochs=9", "name=untrained")
    runner = here(untrained)
    record = evaluate_curriculum(untrained, runner, stage="clip_sam_best")
    assert record.baselines == finished.baselines and not record.stages
    with pytest.raises(ConfigError, match="'semantic_alignment' is not trained as"):
        evaluate_curriculum(untrained, runner)
    with pytest.raises(ConfigError, match="clip_sam_best, semantic_alignment, .*got 'nothing'"):
        evaluate_curriculum(untrained, runner, stage="nothing")
    # A stage is measured without those that come after it.
    longer = small(store, "stages.ris_joint.num_epochs=9", "name=untrained")
    record = evaluate_curriculum(longer, runner, stage="ris_object_centric")
    assert [stage.metrics for stage in record.stages] == [finished.stages[1].metrics]


def test_the_page_alone(finished: RunRecord, store: Path) -> None:
    page = Path(finished.folder) / "report.html"
    page.unlink()
    command = ["report", str(QUICKSTART), *SMALL, f"store={store}", "--local"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert page.exists() and "mIoU" not in result.output


def test_a_forgotten_override_makes_nothing(finished: RunRecord, store: Path) -> None:
    def stored() -> set[Path]:
        return {path for path in store.rglob("*") if path.is_file()}

    before = stored()
    for command in (["report"], ["evaluate"], ["select", "--after", "ris_joint"]):
        forgotten = [*SMALL, f"store={store}", "data.referring.num_pictures=31"]
        result = CliRunner().invoke(app, [command[0], str(QUICKSTART), *forgotten, *command[1:]])
        assert result.exit_code == 2
        assert "not trained ('prepare referring' is not done)" in " ".join(result.output.split())
    assert stored() == before


# ---------------------------------------------------------------- which stage is the model


def test_the_last_stage_is_the_model(finished: RunRecord) -> None:
    assert finished.chosen is not None
    assert (finished.chosen.stage, finished.chosen.by) == ("domain_refinement", "last")
    assert not any(stage.on_validation for stage in finished.stages)


def test_the_model_by_pseudo_labels(finished: RunRecord, store: Path) -> None:
    """No ground truth is read: what agrees best with the validation split's own labels."""
    record = run_here(small(store, "model_selection=pseudo_iou", "name=weak"), train=False)
    assert figures(record) == figures(finished)
    rows = record.data["validation"].labels.read_all().to_pylist()
    labels = {row["expression_id"]: row for row in rows}
    scores = {}
    for stage in record.stages:
        results = nodes_of(record)[f"results.validation.{stage.name}"]
        assert set(results.made_from["parents"]) == {"labels", "features", "checkpoint"}
        ious = []
        for row in results.read_all().to_pylist():
            label = labels[row["expression_id"]]
            size = [label["height"], label["width"]]
            candidates = [{"size": size, "counts": c["mask"]} for c in label["candidates"]]
            mask = {"size": size, "counts": row["mask"]}
            ious.append(coco.iou([mask], candidates, [0] * len(candidates)).max())
        assert len(ious) == len(labels)
        scores[stage.name] = 100 * np.mean(ious)
    assert record.chosen is not None
    assert record.chosen.scores == pytest.approx(scores)
    assert record.chosen.stage == max(scores, key=scores.__getitem__)
    stored = open_checkpoint(record.folder)
    assert stored.digest == record.stage(record.chosen.stage).checkpoint.digest


def test_the_model_by_truth_says_so(finished: RunRecord, store: Path) -> None:
    record = run_here(small(store, "model_selection=truth", "name=truth"), train=False)
    assert record.chosen is not None
    for name, score in record.chosen.scores.items():
        results = nodes_of(record)[f"results.validation.{name}"]
        assert "ground_truth" in results.made_from["parents"]
        assert score == metrics_of(results)["mIoU"]
    assert record.chosen.scores[record.chosen.stage] == max(record.chosen.scores.values())
    assert "not weakly supervised" in (Path(record.folder) / "report.html").read_text()
    assert "not weakly supervised" in (Path(record.folder) / "summary.json").read_text()


def test_scores_are_calibrated_on_pseudo_labels(finished: RunRecord) -> None:
    """The evidence is of validation's sentences with one candidate and of other pictures' ones."""
    stage, tables = finished.stages[-1], finished.data["validation"]
    labels = {row["expression_id"]: row for row in tables.labels.read_all().to_pylist()}
    texts = {row["picture"]: row["expressions"] for row in tables.samples.read_all().to_pylist()}
    rows = stage.evidence.read_all().to_pylist()
    matched = [row for row in rows if row["matched"]]
    single = {key for key, row in labels.items() if len(row["candidates"]) == 1}
    assert {row["expression_id"] for row in matched} == single and len(matched) == len(single) > 0
    others = [row for row in rows if not row["matched"]]
    assert len({row["picture"] for row in others}) == len(others) > 0
    for row in others:
        assert not row["right"]
        assert row["expression_id"] not in {e["expression_id"] for e in texts[row["picture"]]}
    assert "ground_truth" not in stage.evidence.made_from["parents"]

    figures = np.array([row["evidence"] for row in rows])
    weight = [1 if row["matched"] else 0.1 * len(matched) / len(others) for row in rows]
    fitted = fit_calibration(figures, np.array([r["right"] for r in rows]), np.array(weight))
    assert stage.calibration == fitted


def test_the_score_is_the_probability_of_its_evidence(finished: RunRecord) -> None:
    stage, split = finished.stages[-1], split_of(finished, "evaluation")
    expected = {row["expression_id"]: row["score"] for row in results_in(finished)[stage.name]}
    found = predict_expressions(
        trained(stage.checkpoint, finished.curriculum.model),
        [
            {"picture": r["picture"], **e}
            for r in split.samples.read(0).to_pylist()
            for e in r["expressions"]
        ],
        features=split.features,
        words=split.words,
        phrases=split.phrases,
        bucket=0,
    )
    for prediction in found:
        (score,) = stage.calibration.probability(prediction.evidence[None])
        assert score == pytest.approx(expected[prediction.expression_id], abs=1e-6)
        assert prediction.score != pytest.approx(score, abs=1e-3)  # that is c of the query

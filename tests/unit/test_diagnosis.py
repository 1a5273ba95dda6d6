"""What the points, the attention and the scores of finished runs are worth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from run_record import build_record

from ppt.curriculum.choice import choose_stage
from ppt.evaluation.diagnosis import calibration_error, diagnose, negative_effect, roc_area
from ppt.experiments.ablation import Measured
from ppt.experiments.negatives_gallery import negatives_gallery
from ppt.images.masks import points_on
from ppt.report.gallery import Strip
from ppt.store.nodes import BucketOutput, bucket_of
from ppt.store.schema import RESULTS


def results(rows: list[dict]) -> pa.Table:
    """Rows of results in which only the columns of the diagnosis matter."""
    fixed = {"picture": "a", "text": "", "intersection": 0, "union": 1, "mask": b"", "points": []}
    return pa.Table.from_pylist(
        [{**fixed, "expression_id": str(i), **row} for i, row in enumerate(rows)], RESULTS
    )


def row(iou: float, without: float, labels: list[int], on: list[bool], **more: object) -> dict:
    seen = {"peak_on": True, "score": 0.5, **more}
    return {"iou": iou, "iou_without": without, "point_labels": labels, "points_on": on, **seen}


def test_the_figures_worked_by_hand() -> None:
    table = results(
        [
            row(0.9, 0.7, [1, 1, 0], [True, False, False], score=0.95),
            row(0.5, 0.6, [1, 0, 0], [True, True, False], score=0.85),
            row(0.4, 0.1, [1, 0], [False, True], score=0.91, peak_on=False),  # missed
            row(0.0, 0.0, [1], [False], score=0.05, peak_on=False),  # missed
        ]
    )
    found = diagnose(table, np.array([0.06, 0.9]))
    assert found["positives on"] == pytest.approx(100 * 2 / 3)  # of the two that are found
    assert found["negatives off"] == pytest.approx(100 * 2 / 3)
    assert found["mIoU without negatives"] == pytest.approx(100 * (0.7 + 0.6 + 0.1) / 4)
    assert found["peak on"] == 50 and found["surest on"] == 50
    assert found["score ROC"] == 75  # 0.85 is below 0.91: one of four pairs is wrong
    # The tenths hold {0.95 found, 0.91 missed}, {0.85 found} and {0.05 missed}.
    error = abs(0.95 + 0.91 - 1) + abs(0.85 - 1) + 0.05
    assert found["score error"] == pytest.approx(100 * error / 4, rel=1e-5)
    # Of the eight pairs with a sentence of another picture, 0.05 loses both and 0.85 loses one.
    assert found["mismatch ROC"] == 100 * 5 / 8


def test_figures_without_sentences_are_unknown() -> None:
    assert all(math.isnan(value) for value in diagnose(results([]), np.empty(0)).values())


def test_roc_area_counts_equal_scores_half() -> None:
    scores = np.array([0.2, 0.7, 0.7, 0.9])
    assert roc_area(scores, np.array([False, True, False, True])) == (1 + 0.5 + 1 + 1) / 4
    assert math.isnan(roc_area(scores, np.ones(4, bool)))


def test_a_score_of_one_lies_in_the_last_tenth() -> None:
    assert calibration_error(np.array([1.0, 0.95]), np.array([True, True])) == pytest.approx(0.025)


def test_points_are_looked_up_in_pixels() -> None:
    mask = np.zeros((2, 4), bool)
    mask[1, 3] = True
    points = np.array([[0.76, 0.51], [0.74, 0.51], [0.76, 0.49], [1.0, 1.0]])
    assert points_on(mask, points).tolist() == [True, False, False, True]


def test_the_gallery_shows_what_changed_most(tmp_path: Path) -> None:
    record = build_record(tmp_path, num_pictures=6)
    record.chosen = choose_stage("last", [stage.name for stage in record.stages])
    results = record.stages[-1].results
    gains = [0.1, 0.3, -0.2, 0.4, 0, 0, 0.05, 0.02, 0.2, -0.1, 0.35, 0.25]  # two a picture
    sentences = sorted(results.read_all().to_pylist(), key=lambda row: row["expression_id"])
    rows = [
        {
            **row,
            "iou": 0.5,
            "iou_without": 0.5 - gain,
            "mask_without": row["mask"],
        }
        for row, gain in zip(sentences, gains, strict=True)
    ]
    node = results.store.node("results", "test", buckets=results.num_buckets)
    for bucket in range(node.num_buckets):
        mine = [row for row in rows if bucket_of(row["picture"], node.num_buckets) == bucket]
        table = pa.Table.from_pylist(mine, RESULTS)
        node.write_bucket(bucket, BucketOutput({"data": table}))
    assert negatives_gallery(Measured(record, {}, {}, {})) is None  # nothing is trained
    gallery = negatives_gallery(Measured(record, {}, {}, {}, trained=node))
    assert gallery is not None
    assert list(map(gain_of, gallery.better)) == [0.4, 0.35, 0.3, 0.2]  # of four pictures
    assert list(map(gain_of, gallery.worse)) == [-0.2, -0.1]
    assert gallery.better[0].sentence.expression_id == sentences[3]["expression_id"]


def gain_of(strip: Strip) -> float:
    ious = {figure.title: figure.iou for figure in strip.figures}
    return round(ious["with"] - ious["without"], 6)


def test_the_effect_of_negative_points() -> None:
    pairs = [(0.9, 0.9, [1, 1]), (0.8, 0.5, [1, 0, 0]), (0.2, 0.6, [1, 0]), (0.5, 0.45, [0, 1])]
    table = results([row(iou, without, labels, []) for iou, without, labels in pairs])
    effect = negative_effect(table)
    assert (effect.prompts, effect.better, effect.worse, effect.same) == (75, 25, 25, 50)
    assert effect.mean_iou == pytest.approx(60) and effect.mean_iou_without == pytest.approx(61.25)

"""The per-sentence files: what a user opens holds what the metrics were made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco
from run_record import STAGES, build_record

from ppt.evaluation.protocols import CRIS
from ppt.toybox import world
from ppt.tracking.record import RunRecord
from ppt.tracking.results import results_folder, write_results


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return build_record(tmp_path_factory.mktemp("runs"), num_pictures=4)


def test_a_file_for_each_stage_and_baseline(record: RunRecord) -> None:
    folder = write_results(record)
    assert folder == Path(record.folder) / "results"
    names = {"clip_sam_published", "clip_sam_best", *STAGES}
    assert {path.name for path in folder.iterdir()} == {f"{name}.parquet" for name in names}
    for stage in record.stages:
        file = pq.ParquetFile(folder / f"{stage.name}.parquet")
        assert file.num_row_groups == stage.results.num_buckets  # never more than one in memory
        facts = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
        assert facts["measured"] == stage.name and facts["digest"] == stage.results.digest
        assert (facts["split"], facts["protocol"]) == ("evaluation", "ours")


def test_rows_give_the_metrics_again(record: RunRecord) -> None:
    """From the file and the world alone, by pycocotools."""
    folder = write_results(record)
    scenes = {f"scene-4-{i:06d}": world.scene(4, i) for i in range(4)}
    for stage in record.stages:
        rows = pq.read_table(folder / f"{stage.name}.parquet").to_pylist()
        assert len(rows) == 8
        ious = []
        for row in rows:
            scene = scenes[row["picture"]]
            expression = scene.expressions[int(row["expression_id"].rpartition("-")[2])]
            assert row["text"] == expression.text and row["kind"] == expression.kind
            truth = np.asfortranarray(scene.objects[expression.target].mask.astype(np.uint8))
            ious.append(float(coco.iou([row["mask"]], [coco.encode(truth)], [0])[0, 0]))
            assert row["iou"] == pytest.approx(ious[-1])
            assert row["iou"] == row["intersection"] / row["union"]
            assert row["mask"]["size"] == [row["height"], row["width"]] == [96, 96]
            found = coco.decode(row["mask"])
            (x, y), (left, top) = row["points"]  # its centre, and a corner of its box
            rows_in, columns_in = np.nonzero(found)
            assert (left, top) == (columns_in.min(), rows_in.min())
            assert x == (columns_in.min() + columns_in.max() + 1) / 2
            assert y == (rows_in.min() + rows_in.max() + 1) / 2
        assert 100 * np.mean(ious) == pytest.approx(stage.metrics["mIoU"])


def test_other_splits_and_protocols_stand_apart(record: RunRecord) -> None:
    base = Path(record.folder) / "results"
    assert results_folder(replace(record, protocol=CRIS)) == base / "cris"
    assert results_folder(replace(record, split="validation")) == base / "validation"
    both = replace(record, split="validation", protocol=CRIS)
    assert results_folder(both) == base / "validation" / "cris"

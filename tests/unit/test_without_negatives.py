"""Prompts without their negative points: against SamPredictor, and what is reckoned from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from run_record import build_record
from segment_anything import SamPredictor

from ppt.config import Model
from ppt.curriculum.choice import choose_stage
from ppt.experiments.ablation import Measured
from ppt.experiments.negatives_gallery import negatives_gallery
from ppt.images.masks import decode_rle, encode_rle, iou
from ppt.models.build import build_segmenter
from ppt.report.gallery import Strip
from ppt.steps.without_negatives import DecodeWithoutNegatives, effect_of
from ppt.store.arrays import tensor_field, to_tensors
from ppt.store.nodes import BucketOutput, Node, Store, bucket_of
from ppt.store.schema import GROUND_TRUTH, RESULTS, WITHOUT_NEGATIVES
from ppt.toybox import world

KEY = "scene-4-000000"
MODEL = Model()


def write(store: Store, kind: str, table: pa.Table) -> Node:
    node = store.node(kind, "test", buckets=1)
    node.write_bucket(0, BucketOutput({"data": table}))
    node.write_manifest()
    return node


def result(expression_id: str, points: list[float], labels: list[int], mask: np.ndarray) -> dict:
    return {
        "picture": KEY,
        "expression_id": expression_id,
        "text": "the thing",
        "kind": None,
        "intersection": int(mask.sum()),
        "union": int(mask.sum()),
        "iou": 1.0,
        "mask": encode_rle(mask),
        "points": points,
        "point_labels": labels,
        "score": 0.5,
    }


def test_negative_points_are_no_points(tmp_path: Path) -> None:
    scene, store = world.scene(4, 0), Store(str(tmp_path))
    sam = build_segmenter(MODEL.sam)
    height, width = scene.image.shape[:2]
    encoded = sam.encode_images(sam.preprocess(scene.image)[None])
    embedding = encoded["image_embeddings"][0].numpy()
    field = tensor_field("segmenter_image_embeddings", embedding.shape, "float32")
    columns = {"picture": [KEY], "height": [height], "width": [width]}
    features = pa.table(columns).append_column(field, to_tensors(embedding[None]))
    target = scene.objects[0].mask
    rows, columns_in = np.nonzero(target)
    centre = [columns_in.mean() / width, rows.mean() / height]
    prompts = {
        "near": ([*centre, centre[0] + 0.08, centre[1]], [1, 0]),
        "far": ([*centre, 0.9, 0.9], [1, 0]),
        "none": ([*centre, centre[0], centre[1] + 0.05], [1, 1]),
    }
    results = [result(name, *prompt, target) for name, prompt in prompts.items()]
    truths = [
        {
            "picture": KEY,
            "expression_id": name,
            "kind": None,
            "height": height,
            "width": width,
            "mask": encode_rle(target),
        }
        for name in prompts
    ]
    process = DecodeWithoutNegatives(
        write(store, "results", pa.Table.from_pylist(results, RESULTS)),
        write(store, "features", features),
        write(store, "ground_truth", pa.Table.from_pylist(truths, GROUND_TRUTH)),
        MODEL,
        "a run",
    )
    found = {row["expression_id"]: row for row in process(0).tables["data"].to_pylist()}
    assert {name: row["num_negatives"] for name, row in found.items()} == {
        "near": 1,
        "far": 1,
        "none": 0,
    }
    assert found["none"]["mask_without"] is None and found["none"]["iou_without"] == 1

    predictor = SamPredictor(sam.sam)
    predictor.set_image(scene.image)
    with torch.no_grad():
        masks, _, _ = predictor.predict(
            np.array([centre, [0, 0]]) * [width, height], np.array([1, -1]), multimask_output=False
        )
    for name in ("near", "far"):  # wherever it lay
        mask = decode_rle(found[name]["mask_without"], height, width)
        assert mask.any() and iou(mask, masks[0]) > 0.99
        assert found[name]["iou_without"] == iou(mask, target)
        assert found[name]["iou"] == 1


def test_the_gallery_shows_what_changed_most(tmp_path: Path) -> None:
    record = build_record(tmp_path, num_pictures=6)
    record.chosen = choose_stage("last", [stage.name for stage in record.stages])
    results = record.stages[-1].results
    gains = [0.1, 0.3, -0.2, 0.4, 0, 0, 0.05, 0.02, 0.2, -0.1, 0.35, 0.25]  # two a picture
    sentences = sorted(results.read_all().to_pylist(), key=lambda row: row["expression_id"])
    rows = [
        {
            **{key: row[key] for key in ("picture", "expression_id", "text", "kind")},
            "num_negatives": 1,
            "iou": 0.5,
            "iou_without": 0.5 - gain,
            "mask_without": row["mask"],
        }
        for row, gain in zip(sentences, gains, strict=True)
    ]
    node = results.store.node("without_negatives", "test", buckets=results.num_buckets)
    for bucket in range(node.num_buckets):
        mine = [row for row in rows if bucket_of(row["picture"], node.num_buckets) == bucket]
        table = pa.Table.from_pylist(mine, WITHOUT_NEGATIVES)
        node.write_bucket(bucket, BucketOutput({"data": table}))
    assert negatives_gallery(Measured(record, {}, {}, {})) is None  # nothing is trained
    gallery = negatives_gallery(Measured(record, {}, {}, {}, without_negatives=node))
    assert gallery is not None
    assert list(map(gain_of, gallery.better)) == [0.4, 0.35, 0.3, 0.2]  # of four pictures
    assert list(map(gain_of, gallery.worse)) == [-0.2, -0.1]
    assert gallery.better[0].sentence.expression_id == sentences[3]["expression_id"]


def gain_of(strip: Strip) -> float:
    ious = {figure.title: figure.iou for figure in strip.figures}
    return round(ious["with"] - ious["without"], 6)


def test_shares_and_means(tmp_path: Path) -> None:
    pairs = [(0.9, 0.9, 0), (0.8, 0.5, 2), (0.2, 0.6, 1), (0.5, 0.45, 3)]
    rows = [
        {
            "picture": KEY,
            "expression_id": str(i),
            "text": "the thing",
            "num_negatives": num,
            "iou": with_them,
            "iou_without": without,
        }
        for i, (with_them, without, num) in enumerate(pairs)
    ]
    table = pa.Table.from_pylist(rows, WITHOUT_NEGATIVES)
    effect = effect_of(write(Store(str(tmp_path)), "without_negatives", table))
    assert (effect.prompts, effect.better, effect.worse, effect.same) == (75, 25, 25, 50)
    assert effect.mean_iou == pytest.approx(60) and effect.mean_iou_without == pytest.approx(61.25)

"""A small but real `RunRecord`: tables of toybox pictures written through the store, no Ray."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from ppt.config import PointRecipe, parse_curriculum
from ppt.evaluation.metrics import overlap
from ppt.images.masks import encode_rle
from ppt.models.confidence import Calibration
from ppt.steps.evaluate import diagnosis_of, metrics_of
from ppt.store.arrays import tensor_field, to_tensors
from ppt.store.nodes import BucketOutput, Count, Node, Store, bucket_of
from ppt.store.schema import EVIDENCE, GROUND_TRUTH, LABELS, QUARANTINE, RESULTS, SAMPLES
from ppt.toybox import world
from ppt.tracking.record import BaselineRecord, RunRecord, StageRecord, Tables

BUCKETS = 2
GRID, EMBED = 4, 8
STAGES = {"semantic_alignment": 0.5, "ris_joint": 0.7, "refinement.1": 0.75, "refinement.2": 0.9}
"""Stage names with the share of sentences that each finds."""


def curriculum(root: Path, **changes: object):
    scenes = {"format": "toybox_scenes", "num_pictures": 6, "seed": 1}
    tree = {
        "name": "tiny",
        "seed": 7,
        "store": str(root),
        "num_buckets": BUCKETS,
        "data": {
            "referring": scenes,
            "object_centric": {**scenes, "format": "toybox_objects", "seed": 2},
            "validation": {**scenes, "seed": 3},
            "evaluation": {**scenes, "seed": 4},
        },
        "synthesis": {"num_pictures": 6, "size": 96},
        "stages": {
            "semantic_alignment": {"sources": {"d_sem": 1, "h_sem": 2}, "num_epochs": 3},
            "ris_joint": {
                "sources": {"d_sem": 1, "d_ref": 1, "h_sem": 1, "h_ref": 1},
                "num_epochs": 2,
                "select": True,
            },
            "refinement": {
                "sources": {"h_sem": 1, "h_ref": 1},
                "num_epochs": 1,
                "select": True,
                "rounds": 2,
            },
        },
        **changes,
    }
    return parse_curriculum(tree)


def build_record(root: Path, num_pictures: int = 6, *, kinds: bool = True) -> RunRecord:
    """A finished run of four trainings with two baselines. Without `kinds`, nobody knows them."""
    store = Store(str(root))
    record = RunRecord(curriculum(root), f"{root}/tiny", seconds={"prepare": 1.5, "train": 20.0})
    for name, seed in (("referring", 1), ("validation", 3), ("evaluation", 4), ("d_ref", 9)):
        _write_scenes(store, record.data[name], name, seed, num_pictures)
    _write_objects(store, record.data["object_centric"], num_pictures)
    record.data["referring"].labels, *record.selected = (
        _write_h(store, num_pictures, round) for round in range(4)
    )
    for name, share, recipe in (
        ("clip_sam_published", 0.2, PointRecipe()),
        ("clip_sam_best", 0.4, PointRecipe(method="near")),
    ):
        results = _write_results(store, name, share, num_pictures, kinds)
        record.baselines[name] = BaselineRecord(recipe, results, metrics_of(results))
    for number, (name, share) in enumerate(STAGES.items()):
        results = _write_results(store, name, share, num_pictures, kinds)
        selected = record.selected[number - 1] if number else None
        record.stages.append(_stage(record, store, name, results, selected))
    return record


def _stage(
    record: RunRecord, store: Store, name: str, results: Node, selected: Node | None
) -> StageRecord:
    stage = name.partition(".")[0]
    epochs = record.curriculum.stages[stage].num_epochs
    checkpoint = store.node("checkpoints", name)
    checkpoint.write_bytes("generator.safetensors", name.encode())
    history = [{"epoch": e, "loss": 2.0 / e, "loss_mask": 1.0 / e} for e in range(1, epochs + 1)]
    checkpoint.write_manifest(history=history, seconds=12.0)
    return StageRecord(
        name,
        stage,
        checkpoint,
        results,
        metrics_of(results),
        *(_write_evidence(store, name, split) for split in ("validation", "evaluation")),
        Calibration((1.0, 2.0, 3.0), -2.0),
        diagnosis_of(results, np.array([0.1, 0.4])),
        history,
        epochs,
        12.0,
        selected,
    )


# ---------------------------------------------------------------- tables


def _write_evidence(store: Store, name: str, split: str) -> Node:
    node = store.node("evidence", [name, split], buckets=BUCKETS)
    return _write(node, {"data": ([], EVIDENCE)}, {"expressions": Count(3, 3, 0)})


def _write(
    node: Node, tables: dict[str, tuple[list[dict], pa.Schema]], counts: dict[str, Count]
) -> Node:
    """Rows into their buckets; the counts go to bucket 0."""
    for bucket in range(BUCKETS):
        parts = {
            table: pa.Table.from_pylist(
                [r for r in rows if bucket_of(r["picture"], BUCKETS) == bucket], schema
            )
            for table, (rows, schema) in tables.items()
        }
        node.write_bucket(bucket, BucketOutput(parts, counts if bucket == 0 else {}))
    node.write_manifest()
    return node


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _scenes(seed: int, num_pictures: int) -> Iterable[tuple[str, world.Picture]]:
    for i in range(num_pictures):
        yield f"scene-{seed}-{i:06d}", world.scene(seed, i)


def _sample(key: str, picture: world.Picture, class_name: str | None = None) -> dict:
    texts = ["the thing in the middle"] if class_name else [e.text for e in picture.expressions]
    return {
        "picture": key,
        "image": jpeg(picture.image),
        "height": 96,
        "width": 96,
        "class_name": class_name,
        "expressions": [
            {"expression_id": f"{key}-{i}", "text": text} for i, text in enumerate(texts)
        ],
    }


def _write_scenes(store: Store, tables: Tables, name: str, seed: int, num_pictures: int) -> None:
    scenes = list(_scenes(seed, num_pictures))
    samples = [_sample(key, picture) for key, picture in scenes]
    expressions = [(key, p, i, e) for key, p in scenes for i, e in enumerate(p.expressions)]
    if name == "d_ref":
        labels = [_label(key, p, i, "d_ref", chosen=0) for key, p, i, _ in expressions]
        parts = {
            "data": (samples, SAMPLES),
            "labels": (labels, LABELS),
            "quarantine": ([], QUARANTINE),
        }
        counts = {"pictures": Count(num_pictures, num_pictures)}
        node = _write(store.node("d_ref", name, buckets=BUCKETS), parts, counts)
        tables.samples = tables.labels = node
        return
    broken = [
        {
            "picture": "broken.jpg",
            "expression_id": None,
            "num_expressions": 2,
            "reason": "picture is 1x1, needs at least 8x8",
        },
        {
            "picture": "spaces.jpg",
            "expression_id": "spaces-0",
            "num_expressions": 1,
            "reason": "text <b>is</b> only spaces",
        },
    ]
    quarantine = broken if name == "referring" else []
    lost, n = len(quarantine), len(expressions)
    counts = {
        "pictures": Count(num_pictures + lost // 2, num_pictures, lost // 2),
        "expressions": Count(n + 3 * lost // 2, n, 3 * lost // 2),
    }
    parts = {"data": (samples, SAMPLES), "quarantine": (quarantine, QUARANTINE)}
    tables.samples = _write(store.node("samples", name, buckets=BUCKETS), parts, counts)
    tables.features = _write_features(store, name, [key for key, _ in scenes])
    if name == "evaluation":
        truth = [
            {
                "picture": key,
                "expression_id": f"{key}-{i}",
                "kind": e.kind,
                "height": 96,
                "width": 96,
                "mask": encode_rle(p.objects[e.target].mask),
            }
            for key, p, i, e in expressions
        ]
        parts = {"data": (truth, GROUND_TRUTH), "quarantine": ([], QUARANTINE)}
        node = store.node("ground_truth", name, buckets=BUCKETS)
        tables.ground_truth = _write(node, parts, {"expressions": Count(n, n)})
        tables.phrases = _write_phrases(store, [e.text for *_, e in expressions])


def _write_features(store: Store, name: str, keys: list[str]) -> Node:
    rng = np.random.default_rng(len(keys))
    node = store.node("features", name, buckets=BUCKETS)
    for bucket in range(BUCKETS):
        mine = [key for key in keys if bucket_of(key, BUCKETS) == bucket]
        tokens = rng.normal(size=(len(mine), 1 + GRID**2, EMBED)).astype(np.float16)
        field = tensor_field("surgery_tokens", (1 + GRID**2, EMBED))
        schema = pa.schema([pa.field("picture", pa.string()), field])
        column = to_tensors(tokens)
        table = pa.Table.from_arrays([pa.array(mine, pa.string()), column], schema=schema)
        counts = {"pictures": Count(len(mine), len(mine))}
        node.write_bucket(bucket, BucketOutput({"data": table}, counts))
    node.write_manifest()
    return node


def _write_phrases(store: Store, texts: list[str]) -> Node:
    rng = np.random.default_rng(0)
    node = store.node("phrases", "evaluation", buckets=BUCKETS)
    for bucket in range(BUCKETS):
        mine = sorted(t for t in {*texts, ""} if bucket_of(t, BUCKETS) == bucket)
        field = tensor_field("embedding", (EMBED,), "float32")
        rows = rng.normal(size=(len(mine), EMBED)).astype(np.float32)
        column = to_tensors(rows)
        schema = pa.schema([pa.field("text", pa.string()), field])
        table = pa.Table.from_arrays([pa.array(mine, pa.string()), column], schema=schema)
        node.write_bucket(
            bucket, BucketOutput({"data": table}, {"texts": Count(len(mine), len(mine))})
        )
    node.write_manifest()
    return node


def _write_objects(store: Store, tables: Tables, num_pictures: int) -> None:
    pictures = [(f"object-2-{i:06d}", world.object_centric(2, i)) for i in range(num_pictures)]
    samples = [_sample(key, p, p.objects[0].class_name) for key, p in pictures]
    labels = [_label(key, p, 0, "d_sem", chosen=0) for key, p in pictures]
    count = Count(num_pictures, num_pictures)
    node = store.node("samples", "object_centric", buckets=BUCKETS)
    parts = {"data": (samples, SAMPLES), "quarantine": ([], QUARANTINE)}
    tables.samples = _write(node, parts, {"pictures": count, "expressions": count})
    node = store.node("labels", "d_sem", buckets=BUCKETS)
    parts = {"data": (labels, LABELS), "quarantine": ([], QUARANTINE)}
    tables.labels = _write(node, parts, {"expressions": count})


def _write_h(store: Store, num_pictures: int, round: int) -> Node:
    """Labels of H: the first expression of a picture is H_sem, the second H_ref."""
    labels = []
    for number, (key, picture) in enumerate(_scenes(1, num_pictures)):
        for i, _ in enumerate(picture.expressions):
            source = "h_ref" if i else "h_sem"
            # Half of the referents change after the first round; one is never decided.
            chosen = None if round == 0 or number == 0 else (round > 1) * (number % 2)
            labels.append(_label(key, picture, i, source, chosen if i else 0))
    name = f"h.{round}" if round else "h"
    node = store.node("labels", name, buckets=BUCKETS)
    tables = {"data": (labels, LABELS), "quarantine": ([], QUARANTINE)}
    return _write(node, tables, {"expressions": Count(len(labels), len(labels))})


def _label(key: str, picture: world.Picture, i: int, source: str, chosen: int | None) -> dict:
    target = picture.expressions[i].target
    objects = [target]
    if source.endswith("ref"):
        objects.append((target + 1) % len(picture.objects))
    return {
        "picture": key,
        "expression_id": f"{key}-{i}",
        "text": picture.expressions[i].text,
        "source": source,
        "height": 96,
        "width": 96,
        "candidates": [
            {
                "phrase": f"the {picture.objects[o].class_name}",
                "mask": encode_rle(picture.objects[o].mask),
                "is_referent": float(n == chosen),
                "points": [0.5, 0.5],
                "point_labels": [1],
                "predicted_iou": 0.9,
            }
            for n, o in enumerate(objects)
        ],
    }


def _write_results(store: Store, name: str, share: float, num_pictures: int, kinds: bool) -> Node:
    """A share of the sentences is found exactly, the others take the next object."""
    rows = []
    for key, picture in _scenes(4, num_pictures):
        for i, expression in enumerate(picture.expressions):
            truth = picture.objects[expression.target]
            luck = bucket_of(f"{key}-{i}", 100) / 100
            other = picture.objects[(expression.target + 1) % len(picture.objects)]
            found = truth if luck < share else other
            x0, y0, x1, y1 = found.box
            intersection, union = overlap(found.mask, truth.mask)
            rows.append(
                {
                    "picture": key,
                    "expression_id": f"{key}-{i}",
                    "text": expression.text,
                    "kind": expression.kind if kinds else None,
                    "intersection": intersection,
                    "union": union,
                    "iou": intersection / union,
                    "mask": encode_rle(found.mask),
                    "points": [(x0 + x1) / 192, (y0 + y1) / 192, x0 / 96, y0 / 96],
                    "point_labels": [1, 0],
                    "score": 0.8,
                    **(_diagnosis(found is truth) if name in STAGES else {}),
                }
            )
    node = store.node("results", name, buckets=BUCKETS)
    tables = {"data": (rows, RESULTS), "quarantine": ([], QUARANTINE)}
    return _write(node, tables, {"expressions": Count(len(rows), len(rows))})


def _diagnosis(found: bool) -> dict:
    """The fields that only trained stages have: the attention lies where the mask lies."""
    attention = np.full(GRID**2, 0.5 / (GRID**2 - 1))
    attention[GRID + 1] = 0.5
    return {
        "points_on": [found, False],
        "iou_without": float(found),
        "attention": attention.tolist(),
        "peak_on": found,
    }

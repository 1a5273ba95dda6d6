"""Small tables of features, words and labels, as the pipeline writes them, and their reader."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ppt.batches.gather import StageReader
from ppt.batches.sampler import LabelTable, Plan
from ppt.batches.targets import target_table
from ppt.images.masks import encode_rle
from ppt.store.arrays import ragged_field, tensor_field, to_ragged, to_tensors
from ppt.store.nodes import TARGETS, BucketOutput, Store, bucket_of
from ppt.store.schema import LABELS

WIDTH, LOW_RES, IMAGE_SIZE, NUM_POINTS = 6, 16, 64, 8
SHAPES = {
    "segmenter_coarse": (3, 2, 2),
    "segmenter_fine": (2, 4, 4),
    "surgery_tokens": (5, 7),
    "visual_features_0": (4, 5),
    "visual_features_1": (4, 5),
}


def label(picture, size, name, masks, source="h_ref"):
    return {
        "picture": picture,
        "expression_id": name,
        "text": f"text {name}",
        "source": source,
        "height": size[0],
        "width": size[1],
        "candidates": [
            {
                "phrase": "dog",
                "mask": encode_rle(mask),
                "is_referent": float(i == 0),
                "points": [0.5, 0.5],
                "point_labels": [1],
                "predicted_iou": 0.9,
            }
            for i, mask in enumerate(masks)
        ],
    }


def blob(size, box):
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def write(node, tables):
    for bucket, of_bucket in enumerate(tables):
        node.write_bucket(bucket, BucketOutput(of_bucket))
    node.write_manifest()
    return node


def stored(folder, rows, num_buckets=1):
    """The tables of labelled pictures as the pipeline writes them."""
    store = Store(str(folder))
    sizes = {row["picture"]: (row["height"], row["width"]) for row in rows}
    texts = sorted({row["text"] for row in rows})
    rng = np.random.default_rng(0)
    features, words, labels = [], [], []
    for bucket in range(num_buckets):
        names = [name for name in sizes if bucket_of(name, num_buckets) == bucket]
        columns = {"picture": pa.array(names, pa.string())}
        for i, side in enumerate(("height", "width")):
            columns[side] = pa.array([sizes[name][i] for name in names], pa.int32())
        fields = [pa.field(name, column.type) for name, column in columns.items()]
        for name, shape in SHAPES.items():
            fields.append(tensor_field(name, shape))
            values = rng.normal(size=(len(names), *shape)).astype(np.float16)
            columns[name] = to_tensors(values)
        features.append(
            {"data": pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))}
        )
        mine = [text for text in texts if bucket_of(text, num_buckets) == bucket]
        lengths = [int(text.split()[1]) for text in mine]
        values = np.repeat(lengths, lengths).astype(np.float16)[:, None].repeat(WIDTH, 1)
        schema = pa.schema([pa.field("text", pa.string()), ragged_field("word_features", WIDTH)])
        column = to_ragged(values, lengths)
        words.append({"data": pa.Table.from_arrays([pa.array(mine), column], schema=schema)})
        table = pa.Table.from_pylist([r for r in rows if r["picture"] in names], LABELS)
        labels.append({"data": table, TARGETS: target_table(table, LOW_RES, IMAGE_SIZE)})
    return LabelTable(
        *(
            write(store.node(kind, {}, buckets=num_buckets), tables)
            for kind, tables in (("labels", labels), ("features", features), ("words", words))
        )
    )


def reader(table, seed=0, num_points=NUM_POINTS, batch_size=3):
    sources = set(table.labels.read_all(columns=["source"])["source"].to_pylist())
    plan = Plan([table], dict.fromkeys(sources, 1.0), stage="s", seed=seed, batch_size=batch_size)
    return StageReader(plan, (table,), num_points)

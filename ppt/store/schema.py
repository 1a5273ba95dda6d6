"""The Arrow schemas of the stored tables.

Tables are split into buckets by a hash of the picture's key (`ppt.store.nodes.bucket_of`), so the
sample, the features and the labels of a picture lie in buckets of the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

FORMAT_VERSION = 2
"""The version of the schemas, which is part of every digest.

Raise it when the meaning of a stored table changes.
"""

SAMPLES = pa.schema(
    [
        pa.field("picture", pa.string(), nullable=False),  # unique key
        pa.field("image", pa.binary(), nullable=False),  # the bytes of a JPEG or PNG file
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("class_name", pa.string()),  # object-centric pictures only
        pa.field(
            "expressions",
            pa.list_(pa.struct([("expression_id", pa.string()), ("text", pa.string())])),
            nullable=False,
        ),
    ]
)

GROUND_TRUTH = pa.schema(
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression_id", pa.string(), nullable=False),
        pa.field("kind", pa.string()),  # class, colour, position, relation; null if unknown
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("mask", pa.binary(), nullable=False),  # COCO RLE counts at the original size
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression_id", pa.string()),  # null if the whole picture is quarantined
        pa.field("num_expressions", pa.int32(), nullable=False),  # expressions that are left out
        pa.field("reason", pa.string(), nullable=False),
    ]
)

CANDIDATE = pa.struct(
    [
        ("phrase", pa.string()),
        ("mask", pa.binary()),  # COCO RLE counts at the original size
        ("is_referent", pa.float32()),  # the confidence score c_e of the pseudo label
        ("points", pa.list_(pa.float32())),  # x0, y0, x1, y1, ... normalised
        ("point_labels", pa.list_(pa.int8())),
        ("predicted_iou", pa.float32()),
    ]
)

LABELS = pa.schema(
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # d_sem, d_ref, h_sem, h_ref
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("candidates", pa.list_(CANDIDATE), nullable=False),
    ]
)

RESULTS = pa.schema(
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("intersection", pa.int64(), nullable=False),
        pa.field("union", pa.int64(), nullable=False),
        pa.field("iou", pa.float64(), nullable=False),
        pa.field("mask", pa.binary(), nullable=False),  # prediction; RLE at the original size
        pa.field("points", pa.list_(pa.float32()), nullable=False),  # surest positive first
        pa.field("point_labels", pa.list_(pa.int8()), nullable=False),
        pa.field("score", pa.float32(), nullable=False),  # how likely the mask is right, 0 to 1
        # What follows serves the diagnosis of trained models; it is null for others.
        pa.field("points_on", pa.list_(pa.bool_())),  # whether each point lies on the referent
        pa.field("iou_without", pa.float64()),  # of the prompt without its negative points
        pa.field("mask_without", pa.binary()),  # its mask; null if there is no negative point
        pa.field("attention", pa.list_(pa.float32())),  # g x g, where the query looked
        pa.field("peak_on", pa.bool_()),  # whether its highest cell lies on the referent
    ]
)

EVIDENCE = pa.schema(  # from which the scores of a trained stage are made; never ground truth
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("matched", pa.bool_(), nullable=False),  # false for a sentence of another picture
        pa.field("right", pa.bool_(), nullable=False),  # the mask agrees with the pseudo label
        pa.field("evidence", pa.list_(pa.float32()), nullable=False),
    ]
)

LABEL_QUALITY = pa.schema(  # pseudo labels compared with ground truth, for diagnosis only
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # d_sem, h_sem, h_ref
        pa.field("kind", pa.string()),
        pa.field("num_candidates", pa.int32(), nullable=False),
        pa.field("iou", pa.float64()),  # of the referent; null if none is chosen
        pa.field("best_iou", pa.float64(), nullable=False),  # of the best candidate
    ]
)

COCO_RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
"""A mask in the form that pycocotools decodes; `size` is [height, width]."""

SENTENCES = pa.schema(  # the exported results, with points in pixels and masks in COCO's form
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("iou", pa.float64(), nullable=False),  # 0 to 1
        pa.field("intersection", pa.int64(), nullable=False),  # pixels at the protocol's size
        pa.field("union", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),  # as in RESULTS; predicted IoU (baseline)
        pa.field("points", pa.list_(pa.list_(pa.float64())), nullable=False),  # (x, y)
        pa.field("point_labels", pa.list_(pa.int8()), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("mask", COCO_RLE, nullable=False),  # the prediction at the original size
    ]
)

PREDICTIONS = pa.schema(  # exported predictions, in pixels of the upright picture
    [
        pa.field("row", pa.int64(), nullable=False),  # in the table of questions, from 1
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression", pa.string(), nullable=False),
        pa.field("unread", pa.list_(pa.string()), nullable=False),  # words that were not read
        pa.field("score", pa.float64(), nullable=False),  # confidence of the referent, 0 to 1
        pa.field("points", pa.list_(pa.list_(pa.float64())), nullable=False),  # (x, y)
        pa.field("point_labels", pa.list_(pa.int8()), nullable=False),
        pa.field("box", pa.list_(pa.int64()), nullable=False),  # x, y, width, height
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("mask", COCO_RLE, nullable=False),
        pa.field("checkpoint", pa.string(), nullable=False),
    ]
)


SentenceKey = tuple[str, str]
"""The key of a sentence in every table, (picture, expression_id)."""


def sentence_key(row: Mapping[str, Any]) -> SentenceKey:
    """Return the key of the sentence in a row of a table."""
    return row["picture"], row["expression_id"]

"""The Arrow schema of each stored table, and arrays inside Arrow columns.

Every table is split into the same buckets by a hash of the picture's key (`store.bucket_of`), so a
picture's sample, features and labels lie in the same bucket number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

FORMAT_VERSION = 1
"""Part of every digest: raise it when the meaning of a stored table changes."""

SAMPLES = pa.schema(
    [
        pa.field("picture", pa.string(), nullable=False),  # unique key
        pa.field("image", pa.binary(), nullable=False),  # encoded bytes: JPEG or PNG
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
        pa.field("expression_id", pa.string()),  # null: the whole picture
        pa.field("num_expressions", pa.int32(), nullable=False),  # expressions lost with this row
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
        pa.field("source", pa.string(), nullable=False),  # d_sem, d_ref, h_sem, h_ref, undecided
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
        pa.field("mask", pa.binary(), nullable=False),  # prediction, RLE at the original size
        pa.field("points", pa.list_(pa.float32()), nullable=False),
        pa.field("point_labels", pa.list_(pa.int8()), nullable=False),
        pa.field("score", pa.float32(), nullable=False),  # referent confidence, 0..1
    ]
)

LABEL_QUALITY = pa.schema(  # pseudo labels against the truth of their training picture: diagnosis
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # h_sem, h_ref, undecided
        pa.field("kind", pa.string()),
        pa.field("num_candidates", pa.int32(), nullable=False),
        pa.field("iou", pa.float64()),  # of the referent; null where nothing is chosen
        pa.field("best_iou", pa.float64(), nullable=False),  # of the best candidate there is
    ]
)

WITHOUT_NEGATIVES = pa.schema(  # results' prompts without their negative points: diagnosis
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("num_negatives", pa.int32(), nullable=False),  # of the prompt
        pa.field("iou", pa.float64(), nullable=False),  # with them, as in the results
        pa.field("iou_without", pa.float64(), nullable=False),  # the same where there are none
        pa.field("mask_without", pa.binary()),  # RLE at the original size; null: as in the results
    ]
)

COCO_RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
"""A mask as pycocotools decodes it: size is [height, width]."""

SENTENCES = pa.schema(  # results as people take them away: pixels, COCO's forms
    [
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("iou", pa.float64(), nullable=False),  # 0..1
        pa.field("intersection", pa.int64(), nullable=False),  # pixels, as the protocol compares
        pa.field("union", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),  # of the referent; SAM's for a baseline
        pa.field("points", pa.list_(pa.list_(pa.float64())), nullable=False),  # (x, y)
        pa.field("point_labels", pa.list_(pa.int8()), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("mask", COCO_RLE, nullable=False),  # the prediction at the original size
    ]
)

PREDICTIONS = pa.schema(  # what people take away: pixels of the upright picture, COCO's forms
    [
        pa.field("row", pa.int64(), nullable=False),  # of the table that was asked, from 1
        pa.field("picture", pa.string(), nullable=False),
        pa.field("expression", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),  # referent confidence, 0..1
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
"""What a sentence has in every table: (picture, expression_id)."""


def sentence_key(row: Mapping[str, Any]) -> SentenceKey:
    """The key of a table's row."""
    return row["picture"], row["expression_id"]


def tensor_field(name: str, shape: tuple[int, ...], dtype: str = "float16") -> pa.Field:
    """A fixed-size-binary field holding one array a row; shape and dtype stand in its metadata."""
    width = int(np.prod(shape)) * np.dtype(dtype).itemsize
    metadata = {"shape": json.dumps(list(shape)), "dtype": dtype}
    return pa.field(name, pa.binary(width), nullable=False, metadata=metadata)


def tensor_shape(field: pa.Field) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one row of a `tensor_field`."""
    return (
        tuple(json.loads(field.metadata[b"shape"])),
        np.dtype(field.metadata[b"dtype"].decode()),
    )


def to_fixed_binary(array: np.ndarray) -> pa.FixedSizeBinaryArray:
    """[rows, ...] -> one fixed-size-binary value a row, without copying the numbers."""
    array = np.ascontiguousarray(array)
    width = array.nbytes // max(len(array), 1)
    return pa.Array.from_buffers(pa.binary(width), len(array), [None, pa.py_buffer(array)])


def from_fixed_binary(column: pa.ChunkedArray | pa.Array, field: pa.Field) -> np.ndarray:
    """The rows of a `tensor_field` as [rows, *shape]; a read-only view of a single chunk."""
    shape, dtype = tensor_shape(field)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    views = []
    for chunk in chunks:
        flat = np.frombuffer(chunk.buffers()[1], dtype=dtype)
        size = int(np.prod(shape))
        views.append(flat[chunk.offset * size : (chunk.offset + len(chunk)) * size])
    if not views:
        return np.empty((0, *shape), dtype)
    flat = views[0] if len(views) == 1 else np.concatenate(views)
    return flat.reshape(-1, *shape)

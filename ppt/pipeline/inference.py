"""f_theta over the rows of a bucket: what Select and evaluation share."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch

from ppt.checkpoint import load_checkpoint
from ppt.config import Model
from ppt.data.batch import Batch
from ppt.data.collate import collate
from ppt.engine import Prediction, evaluate
from ppt.models.point_prompting import PointPrompting
from ppt.pipeline.models import build_point_prompting, pass_device
from ppt.pipeline.rows import PictureRow, picture_table
from ppt.store import Node

PICTURES_AT_ONCE = 16


@functools.lru_cache(maxsize=2)
def trained(checkpoint: Node, model: Model) -> PointPrompting:
    """f_theta with a stage's checkpoint, kept by the process."""
    prompting = build_point_prompting(model, 0, pass_device())
    load_checkpoint(checkpoint.local_folder(), prompting.generator)
    return prompting.eval()


def batches(
    rows: Sequence[PictureRow], prompting: PointPrompting, *, with_targets: bool
) -> Iterator[Batch]:
    """`Batch`es of some pictures with the given expressions."""
    for start in range(0, len(rows), PICTURES_AT_ONCE):
        yield collate(
            picture_table(rows[start : start + PICTURES_AT_ONCE]),
            num_points=prompting.generator.num_points,
            low_res_size=prompting.decoder.low_res_size,
            image_size=prompting.decoder.image_size,
            rng=np.random.default_rng(0),  # draws point targets, which nobody here looks at
            with_targets=with_targets,
        )


def predict_expressions(
    prompting: PointPrompting,
    expressions: Iterable[dict[str, Any]],
    *,
    features: Node,
    words: Node,
    bucket: int,
) -> Iterator[Prediction]:
    """What the model answers to expressions of a bucket, one by one in their order.

    They are dictionaries with `picture`, `expression_id` and `text`, a picture's one after another.
    """
    rows = [
        PictureRow(features, words, bucket, picture, list(group))
        for picture, group in groupby(expressions, key=lambda e: e["picture"])
    ]
    return evaluate(prompting, batches(rows, prompting, with_targets=False), device=pass_device())


@torch.inference_mode()
def query_masks(prompting: PointPrompting, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """All K queries of each expression: masks [B, K, H4, W4] bool, referent logits [B, K]."""
    outputs = prompting(batch)
    logits = outputs["pred_referent_logits"]
    expressions, queries = logits.shape
    index = torch.arange(expressions, device=logits.device).repeat_interleave(queries)
    query = torch.arange(queries, device=logits.device).repeat(expressions)
    masks = prompting.decode(outputs, batch, index, query) > 0
    masks &= prompting.decoder.valid_mask(batch.sizes)[batch.picture_index[index]]
    return masks.unflatten(0, (expressions, queries)), logits

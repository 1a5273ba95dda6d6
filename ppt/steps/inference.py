"""Predictions of f_theta for the rows of a bucket, which Select and evaluation share."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from ppt.batches.batch import Batch
from ppt.batches.features import read_feature
from ppt.batches.gather import PictureRow, gather_pictures
from ppt.config import Model
from ppt.labels.similarity import similarity
from ppt.models.confidence import Calibration
from ppt.models.loaded import build_point_prompting, current_device
from ppt.models.point_prompting import PointPrompting
from ppt.models.prediction import Prediction, predict_batches
from ppt.store.lookup import lookup_text, mapped, row_of
from ppt.store.nodes import Node
from ppt.training.checkpoint import load_checkpoint

PICTURES_AT_ONCE = 16
"""The number of pictures in a batch."""


@functools.lru_cache(maxsize=2)
def trained(checkpoint: Node, model: Model) -> PointPrompting:
    """Return f_theta with the weights of a stage's checkpoint; a process keeps the last two."""
    prompting = build_point_prompting(model, 0, current_device())
    load_checkpoint(checkpoint.local_folder(), prompting.generator)
    return prompting.eval()


def batches(rows: Sequence[PictureRow]) -> Iterator[Batch]:
    """Yield `Batch`es of the given pictures with their expressions."""
    for start in range(0, len(rows), PICTURES_AT_ONCE):
        yield gather_pictures(rows[start : start + PICTURES_AT_ONCE])


def predict_expressions(
    prompting: PointPrompting,
    expressions: Iterable[dict[str, Any]],
    *,
    features: Node,
    words: Node,
    bucket: int,
    phrases: Node | None = None,
    calibration: Calibration | None = None,
    without_negatives: bool = False,
) -> Iterator[Prediction]:
    """Predict the masks of a bucket's expressions, one by one in their order.

    Args:
        prompting: the model.
        expressions: dictionaries with `picture`, `expression_id` and `text`. Those of one picture
            must follow each other.
        features: the features of the pictures.
        words: the word features of the expressions.
        bucket: the bucket of `features` in which the pictures are.
        phrases: the embeddings of the whole expressions, if evidence is asked for.
        calibration: makes the scores out of the evidence.
        without_negatives: whether each prompt is also decoded without its negative points.
    """
    rows = []
    for picture, group in groupby(expressions, key=lambda e: e["picture"]):
        ids, texts = zip(*((e["expression_id"], e["text"]) for e in group), strict=True)
        rows.append(PictureRow(features, words, bucket, picture, ids, texts))
    found = batches(rows)
    if phrases is not None:
        found = (_with_similarity(batch, features, phrases, bucket) for batch in found)
    return predict_batches(
        prompting,
        found,
        device=current_device(),
        calibration=calibration,
        without_negatives=without_negatives,
    )


def _with_similarity(batch: Batch, features: Node, phrases: Node, bucket: int) -> Batch:
    """Add CLIP Surgery's similarity of each expression to its picture's patches."""
    rows = row_of(features, bucket, "picture")
    at = [rows[picture] for picture in batch.pictures]
    tokens = read_feature(mapped(features, bucket), "surgery_tokens", at)[batch.picture_index]
    *texts, empty = torch.from_numpy(lookup_text(phrases, [*batch.texts, ""], "embedding"))
    return replace(batch, similarity=similarity(tokens, torch.stack(texts), empty))


@torch.inference_mode()
def query_masks(prompting: PointPrompting, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode all K queries of each of the B expressions of a batch.

    Returns:
        Masks, bool [B, K, H4, W4] in SAM's low-resolution frame, and referent logits [B, K].
    """
    outputs = prompting(batch, read_all=False)
    logits = outputs["pred_referent_logits"]
    expressions, queries = logits.shape
    index = torch.arange(expressions, device=logits.device).repeat_interleave(queries)
    query = torch.arange(queries, device=logits.device).repeat(expressions)
    masks = prompting.decode(outputs, batch, index, query) > 0
    masks &= prompting.segmenter.valid_mask(batch.sizes)[batch.picture_index[index]]
    return masks.unflatten(0, (expressions, queries)), logits

"""The choice of held-out sentences for the galleries, and the drawings of these sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ppt.images.drawing import TRUTH
from ppt.images.masks import decode_rle
from ppt.images.panels import mask_panel, picture_panel, similarity_panel
from ppt.labels.similarity import similarity_maps
from ppt.report.picture_rows import images_of, rows_of, surgery_tokens_of
from ppt.report.sentences import Sentence
from ppt.store.lookup import lookup_text
from ppt.store.nodes import digest_of
from ppt.tracking.record import RunRecord


def draw(sentences: Sequence[Sentence], among: Iterable[int], count: int) -> list[int]:
    """Draw up to `count` of the indices `among`; every machine draws the same ones.

    The kinds of sentences take turns and no picture is drawn twice, so that few sentences show much
    variety. The indices refer to `sentences`.
    """
    lots: dict[str, list[int]] = {}
    for i in sorted(among, key=lambda i: digest_of(sentences[i].expression_id)):
        lots.setdefault(sentences[i].kind, []).append(i)
    chosen: list[int] = []
    pictures: set[str] = set()
    while lots and len(chosen) < count:
        for kind in sorted(lots):
            if not lots[kind]:
                del lots[kind]
                continue
            i = lots[kind].pop(0)
            if sentences[i].picture not in pictures and len(chosen) < count:
                pictures.add(sentences[i].picture)
                chosen.append(i)
    return chosen


@dataclass(frozen=True)
class Scenes:
    """The pictures, ground truth and predictions of some held-out sentences, ready to be drawn."""

    images: dict[str, np.ndarray]  # by picture
    truth: dict[str, np.ndarray]  # by expression_id
    results: dict[str, dict[str, dict]]  # by baseline or stage, then by expression_id
    similarity: dict[str, np.ndarray]  # by expression_id

    def picture(self, sentence: Sentence) -> Image.Image:
        """Draw the sentence's picture."""
        return picture_panel(self.images[sentence.picture])

    def similarity_map(self, sentence: Sentence) -> Image.Image:
        """Draw CLIP Surgery's map of the whole sentence."""
        image = self.images[sentence.picture]
        return similarity_panel(image, self.similarity[sentence.expression_id])

    def attention(self, sentence: Sentence, stage: str) -> Image.Image:
        """Draw where the chosen query of a trained stage looked."""
        row = self.results[stage][sentence.expression_id]
        attention = np.array(row["attention"])
        side = math.isqrt(len(attention))
        image = self.images[sentence.picture]
        return similarity_panel(image, (attention / attention.max()).reshape(side, side))

    def prediction(self, sentence: Sentence, method: str) -> Image.Image:
        """Draw the method's mask with the points that SAM was prompted with."""
        row = self.results[method][sentence.expression_id]
        image = self.images[sentence.picture]
        mask = decode_rle(row["mask"], *image.shape[:2])
        return mask_panel(image, mask, points=row["points"], point_labels=row["point_labels"])

    def true_mask(self, sentence: Sentence) -> Image.Image:
        """Draw the ground-truth mask."""
        image, mask = self.images[sentence.picture], self.truth[sentence.expression_id]
        return mask_panel(image, mask, colour=TRUTH)


def load_scenes(
    record: RunRecord, sentences: Iterable[Sentence], methods: Iterable[str], *, maps: bool = False
) -> Scenes:
    """Load all that is drawn of some sentences of the evaluation split.

    `methods` are the names of baselines or stages. With `maps` the similarity maps are loaded too.
    """
    sentences = list(sentences)
    pictures = {s.picture for s in sentences}
    tables = record.data["evaluation"]
    truth = _by_expression(rows_of(tables.ground_truth, pictures))
    return Scenes(
        images_of(tables.samples, pictures),
        {i: decode_rle(row["mask"], row["height"], row["width"]) for i, row in truth.items()},
        {m: _by_expression(rows_of(record.results(m), pictures)) for m in methods},
        _similarity_maps(record, sentences) if maps else {},
    )


def _by_expression(by_picture: dict[str, list[dict]]) -> dict[str, dict]:
    return {row["expression_id"]: row for rows in by_picture.values() for row in rows}


def _similarity_maps(record: RunRecord, sentences: Sequence[Sentence]) -> dict[str, np.ndarray]:
    """Return CLIP Surgery's map [g, g] of each whole sentence, by expression_id."""
    if not sentences:
        return {}
    tables = record.data["evaluation"]
    phrases = tables.phrases
    tokens = surgery_tokens_of(tables.features, {s.picture for s in sentences})
    maps = similarity_maps(
        torch.from_numpy(np.stack([tokens[s.picture] for s in sentences])).float(),
        torch.from_numpy(lookup_text(phrases, [s.text for s in sentences], "embedding")),
        torch.from_numpy(lookup_text(phrases, [""], "embedding")[0]),
    )
    return {s.expression_id: m.numpy() for s, m in zip(sentences, maps, strict=True)}

"""Held-out sentences to look at: chosen by a rule, and all that is drawn of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ppt.drawing import TRUTH
from ppt.labels.similarity import similarity_maps
from ppt.masks import decode_rle
from ppt.pipeline.record import RunRecord
from ppt.pipeline.report.panels import mask_panel, picture_panel, similarity_panel
from ppt.pipeline.report.rows import images_of, rows_of, surgery_tokens_of
from ppt.pipeline.report.sentences import Sentence
from ppt.pipeline.tables import lookup_text
from ppt.store import digest_of


def draw(sentences: Sequence[Sentence], among: Iterable[int], count: int) -> list[int]:
    """Up to `count` of the numbers `among`: by lot, the same on every machine.

    Kinds take turns and no picture comes twice, so that few sentences show much.
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
    """Pictures, truth and predictions of some held-out sentences, ready to be drawn."""

    images: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]  # by expression_id
    results: dict[str, dict[str, dict]]  # by baseline or stage, by expression_id
    similarity: dict[str, np.ndarray]  # by expression_id

    def picture(self, sentence: Sentence) -> Image.Image:
        return picture_panel(self.images[sentence.picture])

    def similarity_map(self, sentence: Sentence) -> Image.Image:
        image = self.images[sentence.picture]
        return similarity_panel(image, self.similarity[sentence.expression_id])

    def prediction(self, sentence: Sentence, method: str) -> Image.Image:
        """The method's mask with the points that SAM was prompted with."""
        row = self.results[method][sentence.expression_id]
        image = self.images[sentence.picture]
        mask = decode_rle(row["mask"], *image.shape[:2])
        return mask_panel(image, mask, points=row["points"], point_labels=row["point_labels"])

    def true_mask(self, sentence: Sentence) -> Image.Image:
        image, mask = self.images[sentence.picture], self.truth[sentence.expression_id]
        return mask_panel(image, mask, colour=TRUTH)


def load_scenes(
    record: RunRecord, sentences: Iterable[Sentence], methods: Iterable[str], *, maps: bool = False
) -> Scenes:
    """What is drawn of some sentences of the evaluation split; `maps` adds similarity maps."""
    sentences = list(sentences)
    pictures = {s.picture for s in sentences}
    nodes = record.nodes
    truth = _by_expression(rows_of(nodes["ground_truth.evaluation"], pictures))
    return Scenes(
        images_of(nodes["samples.evaluation"], pictures),
        {i: decode_rle(row["mask"], row["height"], row["width"]) for i, row in truth.items()},
        {m: _by_expression(rows_of(nodes[f"results.{m}"], pictures)) for m in methods},
        _similarity_maps(record, sentences) if maps else {},
    )


def _by_expression(by_picture: dict[str, list[dict]]) -> dict[str, dict]:
    return {row["expression_id"]: row for rows in by_picture.values() for row in rows}


def _similarity_maps(record: RunRecord, sentences: Sequence[Sentence]) -> dict[str, np.ndarray]:
    """CLIP Surgery's map [g, g] of each whole sentence: what CLIP+SAM starts from."""
    if not sentences:
        return {}
    phrases = record.nodes["phrases.evaluation"]
    tokens = surgery_tokens_of(record.nodes["features.evaluation"], {s.picture for s in sentences})
    maps = similarity_maps(
        torch.from_numpy(np.stack([tokens[s.picture] for s in sentences])).float(),
        torch.from_numpy(lookup_text(phrases, [s.text for s in sentences], "embedding")),
        torch.from_numpy(lookup_text(phrases, [""], "embedding")[0]),
    )
    return {s.expression_id: m.numpy() for s, m in zip(sentences, maps, strict=True)}

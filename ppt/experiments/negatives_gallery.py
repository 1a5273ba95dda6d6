"""A gallery of the sentences whose masks negative points changed most.

It shows the mask with negative points, the mask without them, and the ground truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ppt.experiments.ablation import Measured, chosen_stage
from ppt.images.masks import decode_rle
from ppt.images.panels import data_uri, mask_panel
from ppt.report.gallery import Figure, Strip
from ppt.report.scenes import Scenes, load_scenes
from ppt.report.sentences import UNKNOWN, Sentence

PER_SIDE = 4
"""The largest number of sentences shown as better, and also of those shown as worse."""


@dataclass(frozen=True)
class NegativesGallery:
    """The gallery of one trained row of an ablation, with the largest changes first."""

    better: list[Strip]  # sentences with a higher IoU with negative points
    worse: list[Strip]  # sentences with a lower IoU with negative points


def negatives_gallery(measured: Measured) -> NegativesGallery | None:
    """Draw the sentences whose IoU negative points raised most, and those whose IoU they lowered.

    Returns None if nothing was trained.
    """
    if measured.trained is None:
        return None
    stage = chosen_stage(measured.record)
    columns = ["picture", "expression_id", "text", "kind", "iou", "iou_without", "mask_without"]
    rows = measured.trained.read_all(columns=columns).to_pylist()
    rows.sort(key=lambda row: (row["iou_without"] - row["iou"], row["expression_id"]))
    better = list(_first(row for row in rows if row["iou"] > row["iou_without"]))
    worse = list(_first(row for row in reversed(rows) if row["iou"] < row["iou_without"]))
    scenes = load_scenes(measured.record, map(_sentence, better + worse), [stage.name])
    strips = [_strip(scenes, stage.name, row) for row in better + worse]
    return NegativesGallery(strips[: len(better)], strips[len(better) :])


def _first(rows: Iterable[dict]) -> Iterator[dict]:
    """Yield the first `PER_SIDE` rows of different pictures."""
    pictures: set[str] = set()
    for row in rows:
        if row["picture"] not in pictures and len(pictures) < PER_SIDE:
            pictures.add(row["picture"])
            yield row


def _sentence(row: dict) -> Sentence:
    return Sentence(row["picture"], row["expression_id"], row["text"], row["kind"] or UNKNOWN)


def _strip(scenes: Scenes, method: str, row: dict) -> Strip:
    sentence = _sentence(row)
    return Strip(
        sentence,
        [
            Figure("with", data_uri(scenes.prediction(sentence, method)), row["iou"]),
            Figure("without", data_uri(_without(scenes, method, row)), row["iou_without"]),
            Figure("ground truth", data_uri(scenes.true_mask(sentence))),
        ],
    )


def _without(scenes: Scenes, method: str, row: dict) -> Image.Image:
    """Draw the mask that the positive points alone give, with these points."""
    image = scenes.images[row["picture"]]
    prompt = scenes.results[method][row["expression_id"]]
    positive = np.array(prompt["point_labels"]) == 1
    points = np.reshape(prompt["points"], (-1, 2))[positive].flatten().tolist()
    mask = decode_rle(row["mask_without"], *image.shape[:2])
    return mask_panel(image, mask, points=points, point_labels=[1] * int(positive.sum()))

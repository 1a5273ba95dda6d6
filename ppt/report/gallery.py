"""Galleries of held-out sentences.

They show what the run gets right and wrong, and what each stage changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ppt.evaluation.outcomes import FOUND
from ppt.images.panels import data_uri, strip
from ppt.report.scenes import Scenes, draw, load_scenes
from ppt.report.sentences import UNKNOWN, Change, Comparison, Sentence
from ppt.tracking.record import RunRecord, StageRecord

PER_GROUP = 4
"""The number of sentences that are drawn for each group of outcomes."""
PER_CHANGE = 2
"""The number of sentences drawn as found, and also of those drawn as lost, for each stage."""
PER_STAGE = 6
"""The number of panels that MLflow gets for each stage."""


@dataclass(frozen=True)
class Figure:
    """A picture with the title that stands under it and, for a prediction, its IoU."""

    title: str
    source: str  # data URI
    iou: float | None = None  # in 0..1


@dataclass(frozen=True)
class Strip:
    """A sentence with its pictures, which are shown side by side."""

    sentence: Sentence
    figures: list[Figure]


@dataclass(frozen=True)
class Group:
    """The held-out sentences with one outcome: `number` counts them, `strips` shows a few."""

    key: str
    title: str
    number: int
    strips: list[Strip]


_GROUPS = (
    ("learnt", "Learnt: missed by CLIP+SAM, found after the last stage", (False, True)),
    ("missed", "Missed: found by neither", (False, False)),
    ("lost", "Lost: found by CLIP+SAM, missed after the last stage", (True, False)),
    ("kept", "Kept: found by both", (True, True)),
)


def outcome_gallery(record: RunRecord, comparison: Comparison) -> list[Group]:
    """Divide the held-out sentences into four groups, and draw a few sentences of each.

    The groups are defined by whether the best baseline and the last stage find the referent. The
    list is empty if there is no baseline or no stage.
    """
    if comparison.start is None or not record.stages:
        return []
    last = record.stages[-1].name
    before = comparison.iou[comparison.start] >= FOUND
    after = comparison.iou[last] >= FOUND
    members = {
        key: np.flatnonzero((before == was) & (after == is_now))
        for key, _, (was, is_now) in _GROUPS
    }
    chosen = {key: draw(comparison.sentences, m, PER_GROUP) for key, m in members.items()}
    methods = [comparison.start, *(stage.name for stage in record.stages)]
    sentences = [comparison.sentences[i] for numbers in chosen.values() for i in numbers]
    scenes = load_scenes(record, sentences, methods, maps=True)
    return [
        Group(
            key,
            title,
            len(members[key]),
            [_whole_strip(scenes, comparison, i, methods) for i in chosen[key]],
        )
        for key, title, _ in _GROUPS
    ]


def _whole_strip(scenes: Scenes, comparison: Comparison, i: int, methods: Sequence[str]) -> Strip:
    sentence = comparison.sentences[i]
    return Strip(
        sentence,
        [
            Figure("picture", data_uri(scenes.picture(sentence))),
            Figure("CLIP similarity", data_uri(scenes.similarity_map(sentence))),
            Figure("attention", data_uri(scenes.attention(sentence, methods[-1]))),
            *_predictions(scenes, comparison, i, methods),
            Figure("ground truth", data_uri(scenes.true_mask(sentence))),
        ],
    )


def _predictions(
    scenes: Scenes, comparison: Comparison, i: int, methods: Iterable[str]
) -> list[Figure]:
    sentence = comparison.sentences[i]
    return [
        Figure(m, data_uri(scenes.prediction(sentence, m)), float(comparison.iou[m][i]))
        for m in methods
    ]


def change_gallery(record: RunRecord, comparison: Comparison, change: Change) -> list[Strip]:
    """Draw a few sentences whose referent a stage found, then a few whose referent it lost.

    Each strip shows the prediction before, the prediction after and the ground truth.
    """
    before = comparison.iou[change.before] >= FOUND
    after = comparison.iou[change.after] >= FOUND
    chosen = [
        *draw(comparison.sentences, np.flatnonzero(~before & after), PER_CHANGE),
        *draw(comparison.sentences, np.flatnonzero(before & ~after), PER_CHANGE),
    ]
    methods = [change.before, change.after]
    scenes = load_scenes(record, [comparison.sentences[i] for i in chosen], methods)
    return [
        Strip(
            comparison.sentences[i],
            [
                *_predictions(scenes, comparison, i, methods),
                Figure("ground truth", data_uri(scenes.true_mask(comparison.sentences[i]))),
            ],
        )
        for i in chosen
    ]


def stage_panels(record: RunRecord, stage: StageRecord) -> dict[str, Image.Image]:
    """Draw picture, prediction, attention and ground truth of a few sentences as panels, by name.

    The same sentences are drawn for every stage.
    """
    columns = ["picture", "expression_id", "text", "kind", "iou"]
    rows = sorted(
        stage.results.read_all(columns=columns).to_pylist(), key=lambda row: row["expression_id"]
    )
    sentences = [
        Sentence(row["picture"], row["expression_id"], row["text"], row["kind"] or UNKNOWN)
        for row in rows
    ]
    chosen = draw(sentences, range(len(rows)), PER_STAGE)
    scenes = load_scenes(record, [sentences[i] for i in chosen], [stage.name])
    panels = {}
    for number, i in enumerate(chosen, 1):
        parts = [
            scenes.picture(sentences[i]),
            scenes.prediction(sentences[i], stage.name),
            scenes.attention(sentences[i], stage.name),
            scenes.true_mask(sentences[i]),
        ]
        caption = f"{sentences[i].text}  (IoU {rows[i]['iou']:.2f})"
        panels[f"{number}-{sentences[i].kind}"] = strip(parts, caption)
    return panels

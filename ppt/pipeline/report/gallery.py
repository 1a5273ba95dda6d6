"""Galleries of held-out sentences: what the run gets right and wrong, what each stage changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ppt.pipeline.record import RunRecord, StageRecord
from ppt.pipeline.report.panels import data_uri, strip
from ppt.pipeline.report.scenes import Scenes, draw, load_scenes
from ppt.pipeline.report.sentences import FOUND, UNKNOWN, Change, Comparison, Sentence
from ppt.schema import RESULTS

PER_GROUP = 4
PER_CHANGE = 2
PER_STAGE = 6  # panels of a stage in MLflow


@dataclass(frozen=True)
class Figure:
    """One picture with what stands under it."""

    title: str
    source: str  # data URI
    iou: float | None = None  # 0..1


@dataclass(frozen=True)
class Strip:
    """A sentence and its pictures."""

    sentence: Sentence
    figures: list[Figure]


@dataclass(frozen=True)
class Group:
    """Sentences that fared alike; `number` of them in the split, some shown."""

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
    """Every held-out sentence is in one of four groups; a few of each are drawn by lot."""
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
    """Before, after and truth of sentences that a stage found, then of some that it lost."""
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
    """Picture, prediction and truth of a few sentences, the same ones for every stage."""
    columns = [name for name in RESULTS.names if name not in ("mask", "points", "point_labels")]
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
            scenes.true_mask(sentences[i]),
        ]
        caption = f"{sentences[i].text}  (IoU {rows[i]['iou']:.2f})"
        panels[f"{number}-{sentences[i].kind}"] = strip(parts, caption)
    return panels

"""evaluate: compare predictions with the ground truth of a split, sentence by sentence.

Of all steps only this one and, for the diagnosis of finished runs, `label_quality` read ground
truth. A sentence whose prediction is empty, or for which a baseline
finds no mask, counts as IoU 0 and stays in the mean.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ppt.config import Model, PointRecipe
from ppt.evaluation.diagnosis import DIAGNOSED, diagnose
from ppt.evaluation.metrics import Overlaps, measure, overlap
from ppt.evaluation.protocols import Protocol
from ppt.images.masks import decode_rle, encode_rle, points_on
from ppt.models.loaded import current_device, segmenter
from ppt.models.point_prompting import PointPrompting
from ppt.models.prediction import Prediction
from ppt.steps.calibrate import calibration_of
from ppt.steps.inference import predict_expressions, trained
from ppt.steps.label import Phrase, prompt_phrases, recipe_spec
from ppt.steps.step import Step
from ppt.store.lookup import text_encoding
from ppt.store.nodes import DATA, BucketOutput, Count, Node
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import QUARANTINE, RESULTS, sentence_key


@dataclass(frozen=True)
class EvaluationSplit:
    """The tables of a split: the inputs of the models, and the ground truth."""

    samples: Node
    features: Node
    words: Node
    phrases: Node  # the embeddings of the whole expressions, for the baselines
    ground_truth: Node


@dataclass(frozen=True)
class _Sentence:
    """A sentence with its ground truth."""

    picture: str
    expression_id: str
    text: str
    kind: str | None
    truth: np.ndarray  # bool [height, width]


def _sentences(
    split: EvaluationSplit, bucket: int, protocol: Protocol
) -> tuple[list[_Sentence], list[dict]]:
    """Return the sentences of a bucket that are scored, and rows for the quarantine.

    A ground truth is quarantined if its sentence is not among the samples.
    """
    texts = {
        (row["picture"], e["expression_id"]): e["text"]
        for row in split.samples.read(bucket, columns=["picture", "expressions"]).to_pylist()
        for e in row["expressions"]
    }
    sentences, rejected = [], []
    for row in protocol.scored(split.ground_truth.read(bucket).to_pylist()):
        key = sentence_key(row)
        if key in texts:
            truth = decode_rle(row["mask"], row["height"], row["width"])
            sentences.append(_Sentence(*key, texts[key], row["kind"], truth))
        else:
            rejected.append(
                {
                    "picture": key[0],
                    "expression_id": key[1],
                    "num_expressions": 1,
                    "reason": "its picture or text was quarantined by prepare",
                }
            )
    return sentences, rejected


def _result(
    sentence: _Sentence,
    protocol: Protocol,
    mask: np.ndarray,
    points: Any,
    point_labels: Any,
    score: float,
) -> dict[str, Any]:
    """Return the row of a sentence in the results, from its predicted mask and points."""
    intersection, union = overlap(protocol.compared(mask), protocol.compared(sentence.truth))
    return {
        "picture": sentence.picture,
        "expression_id": sentence.expression_id,
        "text": sentence.text,
        "kind": sentence.kind,
        "intersection": intersection,
        "union": union,
        "iou": intersection / union if union else 0.0,
        "mask": encode_rle(mask),
        "points": points,
        "point_labels": point_labels,
        "score": score,
    }


def _output(rows: list[dict], rejected: list[dict]) -> BucketOutput:
    return BucketOutput(
        {
            DATA: pa.Table.from_pylist(rows, RESULTS),
            REJECTED: pa.Table.from_pylist(rejected, QUARANTINE),
        },
        {"expressions": Count(len(rows) + len(rejected), len(rows), len(rejected))},
    )


@dataclass(frozen=True)
class _Evaluate(Step):
    """The `results` of a method on a split, measured by a protocol."""

    kind = "results"
    command = "evaluate"
    version = 4

    split: EvaluationSplit
    model: Model
    protocol: Protocol
    name: str  # the name of what is measured, for display

    @property
    def title(self) -> str:
        return f"evaluate {self.name}"

    @property
    def buckets(self) -> int:
        return self.split.samples.num_buckets

    def spec(self) -> dict[str, Any]:
        return {"protocol": asdict(self.protocol), "phrases": text_encoding(self.split.phrases)}

    def parents(self) -> dict[str, Node]:
        return {
            "samples": self.split.samples,
            "features": self.split.features,
            "ground_truth": self.split.ground_truth,
        }

    def total(self) -> int:
        return self.split.ground_truth.counts()["expressions"]["out"]


@dataclass(frozen=True)
class EvaluateCheckpoint(_Evaluate):
    """The results of a trained stage, sentence by sentence."""

    checkpoint: Node
    evidence: Node  # makes the scores

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "words": text_encoding(self.split.words)}

    def parents(self) -> dict[str, Node]:
        return {**super().parents(), "checkpoint": self.checkpoint, "evidence": self.evidence}

    def __call__(self, bucket: int) -> BucketOutput:
        sentences, rejected = _sentences(self.split, bucket, self.protocol)
        sam = segmenter(self.model.sam, current_device())
        sam = sam.with_mask_threshold(self.protocol.mask_threshold)
        predictions = predict_expressions(
            PointPrompting(trained(self.checkpoint, self.model).generator, sam),
            (
                {"picture": s.picture, "expression_id": s.expression_id, "text": s.text}
                for s in sentences
            ),
            features=self.split.features,
            words=self.split.words,
            phrases=self.split.phrases,
            bucket=bucket,
            calibration=calibration_of(self.evidence),
            without_negatives=True,
        )
        results = [
            {
                **_result(
                    sentence,
                    self.protocol,
                    found.mask,
                    found.points.flatten().tolist(),
                    found.point_labels.tolist(),
                    found.score,
                ),
                **_diagnosis(sentence, self.protocol, found),
            }
            for sentence, found in zip(sentences, predictions, strict=True)
        ]
        return _output(results, rejected)


def _diagnosis(sentence: _Sentence, protocol: Protocol, found: Prediction) -> dict[str, Any]:
    """Return the fields of a result that say where its points and its attention lie."""
    assert found.mask_without is not None
    without = protocol.compared(found.mask_without)
    intersection, union = overlap(without, protocol.compared(sentence.truth))
    side = len(found.attention)
    row, column = divmod(int(found.attention.argmax()), side)
    peak = np.array([[column + 0.5, row + 0.5]]) / side
    return {
        "points_on": points_on(sentence.truth, found.points).tolist(),
        "iou_without": intersection / union if union else 0.0,
        "mask_without": None if found.point_labels.all() else encode_rle(found.mask_without),
        "attention": found.attention.ravel().tolist(),
        "peak_on": bool(points_on(sentence.truth, peak)[0]),
    }


@dataclass(frozen=True)
class EvaluateRecipe(_Evaluate):
    """The results of CLIP + SAM without training (Table 3, row 1).

    The whole expression serves as the phrase. The similarity maps are made from the split's
    features, or from `surgery_tokens`, if there are any.
    """

    recipe: PointRecipe
    surgery_tokens: Node | None = None

    def spec(self) -> dict[str, Any]:
        return {
            **super().spec(),
            "recipe": recipe_spec(self.recipe),
        }

    def parents(self) -> dict[str, Node]:
        tokens = {} if self.surgery_tokens is None else {"surgery_tokens": self.surgery_tokens}
        return {**super().parents(), **tokens}

    def __call__(self, bucket: int) -> BucketOutput:
        sentences, rejected = _sentences(self.split, bucket, self.protocol)
        found = prompt_phrases(
            [Phrase(s.picture, s.expression_id, s.text) for s in sentences],
            self.recipe,
            features=self.split.features,
            embeddings=self.split.phrases,
            bucket=bucket,
            model=self.model,
            surgery_tokens=self.surgery_tokens,
            mask_threshold=self.protocol.mask_threshold,
        )
        results = []
        for sentence, candidates in zip(sentences, found, strict=True):
            mask, points, labels, score = np.zeros_like(sentence.truth), [], [], 0.0
            for candidate in candidates[:1]:
                mask, score = candidate.mask, candidate.predicted_iou
                points = candidate.points.flatten().tolist()
                labels = candidate.point_labels.tolist()
            results.append(_result(sentence, self.protocol, mask, points, labels, score))
        return _output(results, rejected)


def metrics_of(results: Node) -> dict[str, float]:
    """Return every metric in percent over all buckets of a results table."""
    table = results.read_all(columns=["intersection", "union"])
    return measure(Overlaps(table["intersection"].to_numpy(), table["union"].to_numpy()))


def diagnosis_of(results: Node, mismatched: np.ndarray) -> dict[str, float]:
    """Return the figures of `ppt.evaluation.diagnosis` over all buckets of a results table.

    `mismatched` [N] are the scores of sentences of other pictures.
    """
    return diagnose(results.read_all(columns=list(DIAGNOSED)), mismatched)

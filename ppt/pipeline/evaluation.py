"""evaluate: the sentences of a split against their ground truth, as a protocol says.

Ground truth is read here and, to explain a finished run, in `label_quality` and `negative_points`;
nothing that trains reads it. Sums are exact over any number of actors; a sentence whose
prediction is empty, or whose baseline finds no mask, counts as 0 and stays in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ppt.config import Model, PointRecipe
from ppt.masks import decode_rle, encode_rle
from ppt.metrics import RunningMetrics, overlap
from ppt.models.point_prompting import PointPrompting
from ppt.pipeline.features import encoder_spec
from ppt.pipeline.inference import predict_expressions, trained
from ppt.pipeline.label import Phrase, prompt_phrases
from ppt.pipeline.models import pass_device, sam_decoder_at
from ppt.pipeline.passes import Pool
from ppt.protocols import OURS, Protocol
from ppt.schema import QUARANTINE, RESULTS, sentence_key
from ppt.store import DATA, BucketOutput, Count, Node, Store
from ppt.store import QUARANTINE as REJECTED


@dataclass(frozen=True)
class EvaluationSplit:
    """A split to measure on: what the models see, and the truth."""

    name: str
    samples: Node
    features: Node
    words: Node
    embeddings: Node  # of the whole expressions, for the baselines
    ground_truth: Node


@dataclass(frozen=True)
class _Sentence:
    picture: str
    expression_id: str
    text: str
    kind: str | None
    truth: np.ndarray  # bool [height, width]


def _sentences(
    split: EvaluationSplit, bucket: int, protocol: Protocol
) -> tuple[list[_Sentence], list[dict]]:
    """The bucket's sentences that are scored; truths whose sentence was lost, as rejected."""
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
    compared = protocol.compared(mask), protocol.compared(sentence.truth)
    intersection, union = overlap(*compared)
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
class _EvaluateCheckpoint:
    split: EvaluationSplit
    checkpoint: Node
    model: Model
    protocol: Protocol

    def __call__(self, bucket: int) -> BucketOutput:
        sentences, rejected = _sentences(self.split, bucket, self.protocol)
        decoder = sam_decoder_at(self.model.sam, pass_device(), self.protocol.mask_threshold)
        predictions = predict_expressions(
            PointPrompting(trained(self.checkpoint, self.model).generator, decoder),
            (
                {"picture": s.picture, "expression_id": s.expression_id, "text": s.text}
                for s in sentences
            ),
            features=self.split.features,
            words=self.split.words,
            bucket=bucket,
        )
        results = [
            _result(
                sentence,
                self.protocol,
                found.mask,
                found.points.flatten().tolist(),
                found.point_labels.tolist(),
                found.score,
            )
            for sentence, found in zip(sentences, predictions, strict=True)
        ]
        return _output(results, rejected)


@dataclass(frozen=True)
class _EvaluateRecipe:
    """CLIP + SAM without training: the whole expression is the phrase (Table 3, row 1)."""

    split: EvaluationSplit
    recipe: PointRecipe
    model: Model
    protocol: Protocol

    def __call__(self, bucket: int) -> BucketOutput:
        sentences, rejected = _sentences(self.split, bucket, self.protocol)
        found = prompt_phrases(
            [Phrase(s.picture, s.expression_id, s.text) for s in sentences],
            self.recipe,
            features=self.split.features,
            embeddings=self.split.embeddings,
            bucket=bucket,
            model=self.model,
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


def evaluate_checkpoint(
    store: Store,
    pool: Pool,
    split: EvaluationSplit,
    checkpoint: Node,
    model: Model,
    *,
    name: str,
    protocol: Protocol = OURS,
) -> Node:
    """The per-sentence results of a checkpoint on a split."""
    parents = _parents(split) | {"checkpoint": checkpoint}
    node = store.node("results", _spec(protocol), parents, buckets=split.samples.num_buckets)
    process = _EvaluateCheckpoint(split, checkpoint, model, protocol)
    return pool.run(node, process, title=f"evaluate {name}", total=_num_sentences(split))


def evaluate_recipe(
    store: Store,
    pool: Pool,
    split: EvaluationSplit,
    recipe: PointRecipe,
    model: Model,
    *,
    name: str,
    protocol: Protocol = OURS,
) -> Node:
    """The per-sentence results of CLIP + SAM with a point recipe on a split."""
    spec = {**encoder_spec(model), "recipe": recipe.model_dump(), **_spec(protocol)}
    node = store.node("results", spec, _parents(split), buckets=split.samples.num_buckets)
    process = _EvaluateRecipe(split, recipe, model, protocol)
    return pool.run(node, process, title=f"evaluate {name}", total=_num_sentences(split))


def _spec(protocol: Protocol) -> dict[str, Any]:
    """Ours is what results without a protocol are."""
    return {} if protocol == OURS else {"protocol": asdict(protocol)}


def _parents(split: EvaluationSplit) -> dict[str, Node]:
    return {
        "samples": split.samples,
        "features": split.features,
        "ground_truth": split.ground_truth,
    }


def _num_sentences(split: EvaluationSplit) -> int:
    return split.ground_truth.counts()["expressions"]["out"]


def metrics_of(results: Node) -> dict[str, float]:
    """mIoU, oIoU and P@X in percent over all buckets of a results table."""
    total = RunningMetrics()
    for bucket in range(results.num_buckets):
        table = results.read(bucket, columns=["intersection", "union"])
        for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
            total.update(*row)
    return total.as_dict()


def best_recipe(
    store: Store, pool: Pool, split: EvaluationSplit, recipes: Sequence[PointRecipe], model: Model
) -> PointRecipe:
    """The recipe with the highest mIoU on a split (the validation world, never the held-out)."""
    measured = [
        metrics_of(evaluate_recipe(store, pool, split, recipe, model, name=f"recipe {i + 1}"))
        for i, recipe in enumerate(recipes)
    ]
    return recipes[int(np.argmax([metrics["mIoU"] for metrics in measured]))]

"""label: pseudo labels by frozen CLIP and frozen SAM, one candidate for each noun phrase.

D_sem: the class name is the phrase and its mask the referent. H: every noun phrase gives a
candidate; a single one makes the sample H_sem with score 1, several make it H_ref with scores 0
until the first Select (Section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ppt.config import Labels, Model, PointRecipe
from ppt.expressions import CHUNKERS, noun_phrases
from ppt.labels.candidates import Candidate, PhrasePrompt, instance_candidates, merge_candidates
from ppt.labels.similarity import similarity_maps
from ppt.masks import encode_rle
from ppt.pipeline.features import encoder_spec
from ppt.pipeline.models import pass_device, sam_decoder_at
from ppt.pipeline.passes import Pool
from ppt.pipeline.tables import lookup_text, mapped, row_of
from ppt.schema import LABELS, QUARANTINE, SentenceKey, from_fixed_binary
from ppt.store import DATA, BucketOutput, Count, Node, Store
from ppt.store import QUARANTINE as REJECTED

PICTURES_AT_ONCE = 32


@dataclass(frozen=True)
class Phrase:
    """A phrase to find in a picture, for one of its expressions."""

    picture: str
    expression_id: str
    text: str  # the phrase


def phrases_of(sample: dict[str, Any], chunker: str) -> Iterator[Phrase]:
    """A sample's phrases: the class name of an object-centric picture, else all noun phrases."""
    for expression in sample["expressions"]:
        class_name = sample["class_name"]
        texts = [class_name] if class_name else noun_phrases(expression["text"], chunker)
        for text in texts:
            yield Phrase(sample["picture"], expression["expression_id"], text)


@torch.inference_mode()
def prompt_phrases(
    phrases: list[Phrase],
    recipe: PointRecipe,
    *,
    features: Node,
    embeddings: Node,
    bucket: int,
    model: Model,
    max_instances: int = 1,
    instance_threshold: float = 1.0,
    mask_threshold: float = 0.0,
) -> list[list[Candidate]]:
    """CLIP + SAM: a phrase's similarity map -> points -> masks; none where nothing responds."""
    device = pass_device()
    sam = sam_decoder_at(model.sam, device, mask_threshold)
    table, rows = mapped(features, bucket), row_of(features, bucket, "picture")
    empty = torch.from_numpy(lookup_text(embeddings, [""], "embedding")[0]).to(device)
    found: list[list[Candidate]] = []
    for start in range(0, len(phrases), PICTURES_AT_ONCE):
        part = phrases[start : start + PICTURES_AT_ONCE]
        pictures = {name: i for i, name in enumerate(dict.fromkeys(p.picture for p in part))}
        at = [rows[name] for name in pictures]
        tokens = _tensor(table, "surgery_tokens", at, device)
        index = torch.tensor([pictures[p.picture] for p in part], device=device)
        texts = torch.from_numpy(lookup_text(embeddings, [p.text for p in part], "embedding"))
        maps = similarity_maps(tokens[index], texts.to(device), empty)
        sizes = torch.tensor([[table[c][i].as_py() for c in ("height", "width")] for i in at])
        prompts = [
            PhrasePrompt(pictures[p.picture], p.text, similarity)
            for p, similarity in zip(part, maps, strict=True)
        ]
        embedded = _tensor(table, "image_embeddings", at, device)
        found += instance_candidates(
            sam,
            embedded,
            sizes.to(device),
            prompts,
            recipe,
            max_instances=max_instances,
            threshold=instance_threshold,
        )
    return found


def _tensor(table: pa.Table, column: str, rows: list[int], device: str) -> torch.Tensor:
    values = from_fixed_binary(table[column], table.schema.field(column))[rows]
    return torch.from_numpy(values.astype(np.float32)).to(device)


@dataclass(frozen=True)
class _LabelBucket:
    samples: Node
    features: Node
    embeddings: Node
    model: Model
    labels: Labels
    recipe: PointRecipe

    def __call__(self, bucket: int) -> BucketOutput:
        samples = self.samples.read(
            bucket, columns=["picture", "height", "width", "class_name", "expressions"]
        ).to_pylist()
        phrases = [p for sample in samples for p in phrases_of(sample, self.labels.chunker)]
        centric = bool(samples) and samples[0]["class_name"] is not None
        found = prompt_phrases(
            phrases,
            self.recipe,
            features=self.features,
            embeddings=self.embeddings,
            bucket=bucket,
            model=self.model,
            max_instances=1 if centric else self.labels.max_instances,
            instance_threshold=self.labels.instance_threshold,
        )
        by_expression: dict[SentenceKey, list[Candidate]] = {}
        for phrase, candidates in zip(phrases, found, strict=True):
            by_expression.setdefault((phrase.picture, phrase.expression_id), []).extend(candidates)
        rows, rejected = [], []
        for sample in samples:
            for expression in sample["expressions"]:
                key = (sample["picture"], expression["expression_id"])
                candidates = merge_candidates(by_expression.get(key, []), self.labels.merge_iou)
                if candidates:
                    rows.append(_label_row(sample, expression, candidates))
                else:
                    rejected.append(_no_candidate(sample, expression))
        return BucketOutput(
            {
                DATA: pa.Table.from_pylist(rows, LABELS),
                REJECTED: pa.Table.from_pylist(rejected, QUARANTINE),
            },
            {"expressions": Count(len(rows) + len(rejected), len(rows), len(rejected))},
        )


def _label_row(sample: dict, expression: dict, candidates: list[Candidate]) -> dict[str, Any]:
    if sample["class_name"] is not None:
        source = "d_sem"
    else:
        source = "h_sem" if len(candidates) == 1 else "h_ref"
    return {
        "picture": sample["picture"],
        "expression_id": expression["expression_id"],
        "text": expression["text"],
        "source": source,
        "height": sample["height"],
        "width": sample["width"],
        "candidates": [
            {
                "phrase": c.phrase,
                "mask": encode_rle(c.mask),
                "is_referent": float(len(candidates) == 1),
                "points": c.points.flatten().tolist(),
                "point_labels": c.point_labels.tolist(),
                "predicted_iou": c.predicted_iou,
            }
            for c in candidates
        ],
    }


def _no_candidate(sample: dict, expression: dict) -> dict[str, Any]:
    return {
        "picture": sample["picture"],
        "expression_id": expression["expression_id"],
        "num_expressions": 1,
        "reason": f"no phrase of {expression['text']!r} gives a mask",
    }


def label(
    store: Store,
    pool: Pool,
    samples: Node,
    features: Node,
    embeddings: Node,
    *,
    model: Model,
    labels: Labels,
    recipe: PointRecipe,
    name: str,
) -> Node:
    """Round 0 of the labels of a samples table. Quarantined: expressions without a candidate.

    `embeddings` are the `phrases` of all its phrases and the empty one; `recipe` is the one of
    `labels` for this kind of picture.
    """
    spec = {
        **encoder_spec(model),
        "recipe": recipe.model_dump(),
        "chunker": CHUNKERS[labels.chunker],
        "merge_iou": labels.merge_iou,
        "instances": [labels.max_instances, labels.instance_threshold],
    }
    parents = {"samples": samples, "features": features}
    node = store.node("labels", spec, parents, buckets=samples.num_buckets)
    process = _LabelBucket(samples, features, embeddings, model, labels, recipe)
    total = samples.counts()["expressions"]["out"]
    return pool.run(node, process, title=f"label {name}", total=total)

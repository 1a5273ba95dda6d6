"""label: pseudo labels by the frozen models, one candidate for each noun phrase.

For D_sem the class name is the phrase, and its mask is the referent. For H every noun phrase gives
a candidate. A sample with a single candidate belongs to H_sem, with score 1. A sample with several
candidates belongs to H_ref, with scores 0 until the first Select (Section 3.3).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from ppt.batches.features import read_feature, read_segmenter_features
from ppt.batches.targets import target_table
from ppt.config import Labels, Model, PointRecipe
from ppt.images.masks import encode_rle
from ppt.labels.candidates import Candidate, PhrasePrompt, instance_candidates, merge_candidates
from ppt.labels.noun_phrases import CHUNKERS, noun_phrases
from ppt.labels.similarity import similarity_maps
from ppt.models.loaded import current_device, encoder_fingerprints, segmenter
from ppt.steps.step import Step
from ppt.store.lookup import lookup_text, mapped, row_of, text_encoding
from ppt.store.nodes import DATA, TARGETS, BucketOutput, Count, Node
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import LABELS, QUARANTINE, SentenceKey

PICTURES_AT_ONCE = 32
"""The number of phrases that are prompted together."""


@dataclass(frozen=True)
class Phrase:
    """A phrase to find in a picture, for one of the picture's expressions."""

    picture: str
    expression_id: str
    text: str  # the phrase


def class_phrases(sample: dict[str, Any]) -> Iterator[Phrase]:
    """Yield the class name of an object-centric sample, once for each of its expressions."""
    for expression in sample["expressions"]:
        yield Phrase(sample["picture"], expression["expression_id"], sample["class_name"])


def noun_phrases_of(sample: dict[str, Any], chunker: str) -> Iterator[Phrase]:
    """Yield all noun phrases of a referring sample's expressions, in the order of the text."""
    for expression in sample["expressions"]:
        for text in noun_phrases(expression["text"], chunker):
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
    surgery_tokens: Node | None = None,
    max_instances: int = 1,
    instance_threshold: float = 1.0,
    mask_threshold: float = 0.0,
) -> list[list[Candidate]]:
    """Find the candidates of phrases of a bucket; a phrase that nothing responds to has none.

    A phrase's similarity map gives points, and the points give masks. The maps are made from the
    surgery tokens in `features`, or from those in `surgery_tokens`, if it is given.
    """
    device = current_device()
    sam = segmenter(model.sam, device).with_mask_threshold(mask_threshold)
    table, rows = mapped(features, bucket), row_of(features, bucket, "picture")
    of_maps = features if surgery_tokens is None else surgery_tokens
    map_table, map_rows = mapped(of_maps, bucket), row_of(of_maps, bucket, "picture")
    empty = torch.from_numpy(lookup_text(embeddings, [""], "embedding")[0]).to(device)
    found: list[list[Candidate]] = []
    for start in range(0, len(phrases), PICTURES_AT_ONCE):
        part = phrases[start : start + PICTURES_AT_ONCE]
        pictures = {name: i for i, name in enumerate(dict.fromkeys(p.picture for p in part))}
        at = [rows[name] for name in pictures]
        map_at = [map_rows[name] for name in pictures]
        tokens = read_feature(map_table, "surgery_tokens", map_at, device)
        index = torch.tensor([pictures[p.picture] for p in part], device=device)
        texts = torch.from_numpy(lookup_text(embeddings, [p.text for p in part], "embedding"))
        maps = similarity_maps(tokens[index], texts.to(device), empty)
        sizes = torch.tensor(
            [[table.column(c)[i].as_py() for c in ("height", "width")] for i in at]
        )
        prompts = [
            PhrasePrompt(pictures[p.picture], p.text, similarity)
            for p, similarity in zip(part, maps, strict=True)
        ]
        found += instance_candidates(
            sam,
            read_segmenter_features(table, at, device),
            sizes.to(device),
            prompts,
            recipe,
            max_instances=max_instances,
            threshold=instance_threshold,
        )
    return found


def recipe_spec(recipe: PointRecipe) -> dict[str, Any]:
    """Return the fields of a recipe that its method uses, for the digest of what is made by it."""
    unused = {"num_positive", "num_negative"} if recipe.method == "surgery" else set()
    return recipe.model_dump(exclude=unused)


@dataclass(frozen=True)
class _Label(Step):
    """The step that makes the first labels, round 0, of a samples table.

    Expressions without a candidate are quarantined. `phrases` holds the embeddings of all phrases
    of the samples and of the empty text.
    """

    kind = "labels"
    command = "label"
    version = 2

    samples: Node
    features: Node
    phrases: Node
    model: Model
    recipe: PointRecipe
    name: str

    @property
    def title(self) -> str:
        return f"label {self.name}"

    @property
    def buckets(self) -> int:
        return self.samples.num_buckets

    def spec(self) -> dict[str, Any]:
        return {
            **encoder_fingerprints(self.model),
            "phrases": text_encoding(self.phrases),
            "recipe": recipe_spec(self.recipe),
        }

    def parents(self) -> dict[str, Node]:
        return {"samples": self.samples, "features": self.features}

    def total(self) -> int:
        return self.samples.counts()["expressions"]["out"]

    def __call__(self, bucket: int) -> BucketOutput:
        samples = self.samples.read(
            bucket, columns=["picture", "height", "width", "class_name", "expressions"]
        ).to_pylist()
        rows, rejected = [], []
        candidates = self._candidates(samples, bucket)
        for sample in samples:
            for expression in sample["expressions"]:
                found = candidates[sample["picture"], expression["expression_id"]]
                if found:
                    rows.append(_label_row(sample, expression, found))
                else:
                    rejected.append(_no_candidate(sample, expression))
        labels = pa.Table.from_pylist(rows, LABELS)
        sam = segmenter(self.model.sam, current_device())
        return BucketOutput(
            {
                DATA: labels,
                TARGETS: target_table(labels, sam.low_res_size, sam.image_size),
                REJECTED: pa.Table.from_pylist(rejected, QUARANTINE),
            },
            {"expressions": Count(len(rows) + len(rejected), len(rows), len(rejected))},
            num_by_source(rows),
        )

    @abstractmethod
    def _candidates(
        self, samples: list[dict[str, Any]], bucket: int
    ) -> Mapping[SentenceKey, list[Candidate]]:
        """Return the candidates of every expression of the given samples of a bucket."""

    def _prompt(self, phrases: list[Phrase], bucket: int, **kwargs: Any) -> list[list[Candidate]]:
        """Call `prompt_phrases` with the tables and the recipe of this step."""
        return prompt_phrases(
            phrases,
            self.recipe,
            features=self.features,
            embeddings=self.phrases,
            bucket=bucket,
            model=self.model,
            **kwargs,
        )


@dataclass(frozen=True)
class LabelObjectCentric(_Label):
    """The labels of D_sem: the class name is the phrase, and its mask is the referent."""

    def _candidates(
        self, samples: list[dict[str, Any]], bucket: int
    ) -> Mapping[SentenceKey, list[Candidate]]:
        phrases = [phrase for sample in samples for phrase in class_phrases(sample)]
        found = self._prompt(phrases, bucket)
        return {(p.picture, p.expression_id): c for p, c in zip(phrases, found, strict=True)}


@dataclass(frozen=True)
class LabelReferring(_Label):
    """The labels of H: every noun phrase gives one candidate, or up to `max_instances`."""

    labels: Labels

    def spec(self) -> dict[str, Any]:
        several = self.labels.max_instances > 1
        return {
            **super().spec(),
            "chunker": CHUNKERS[self.labels.chunker],
            "merge_iou": self.labels.merge_iou,
            "max_instances": self.labels.max_instances,
            # A single instance needs no threshold.
            "instance_threshold": several and self.labels.instance_threshold,
        }

    def _candidates(
        self, samples: list[dict[str, Any]], bucket: int
    ) -> Mapping[SentenceKey, list[Candidate]]:
        chunker = self.labels.chunker
        phrases = [phrase for sample in samples for phrase in noun_phrases_of(sample, chunker)]
        found = self._prompt(
            phrases,
            bucket,
            max_instances=self.labels.max_instances,
            instance_threshold=self.labels.instance_threshold,
        )
        by_expression: dict[SentenceKey, list[Candidate]] = defaultdict(list)
        for phrase, candidates in zip(phrases, found, strict=True):
            by_expression[phrase.picture, phrase.expression_id] += candidates
        merged = {k: merge_candidates(c, self.labels.merge_iou) for k, c in by_expression.items()}
        return defaultdict(list, merged)  # an expression may have no noun phrase


def num_by_source(labels: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of rows of each source in a table of labels.

    The steps that make labels write these numbers into their receipts (`BucketOutput.info`), so
    that they are known without reading the table.
    """
    return dict(Counter(row["source"] for row in labels))


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

"""Metrics of the evaluation split's sentences, by the number of their candidates.

The candidates are those that the labelling of H would find: the choices that a sentence leaves
open, which are the same for every row of an ablation. They serve the diagnosis of finished runs
only. The labels of the evaluation split are in no run's record, so nothing that trains a model or
chooses one can use them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pyarrow.compute as pc

from ppt.config import Labels
from ppt.evaluation.metrics import Overlaps
from ppt.evaluation.outcomes import candidate_group
from ppt.steps.encode import EncodePhrases
from ppt.steps.label import LabelReferring, noun_phrases_of
from ppt.steps.runner import Runner
from ppt.store.nodes import Node
from ppt.store.schema import SentenceKey, sentence_key
from ppt.tracking.record import RunRecord


def count_candidates(record: RunRecord, runner: Runner, labels: Labels) -> dict[SentenceKey, int]:
    """Count the candidates that `labels` finds for each sentence of the evaluation split.

    Sentences without a candidate are left out.
    """
    curriculum, tables = record.curriculum, record.data["evaluation"]
    rows = tables.samples.read_all(columns=["picture", "class_name", "expressions"]).to_pylist()
    texts = [p.text for row in rows for p in noun_phrases_of(row, labels.chunker)]
    clip, buckets = curriculum.model.clip, curriculum.num_buckets
    phrases = runner.run(EncodePhrases.of([*texts, ""], clip, buckets, "evaluation"))
    found = runner.run(
        LabelReferring(
            tables.samples,
            tables.features,
            phrases,
            curriculum.model,
            labels.referring,
            "evaluation, for the diagnosis",
            labels,
        )
    )
    counts: dict[SentenceKey, int] = {}
    for bucket in range(found.num_buckets):
        table = found.read(bucket, columns=["picture", "expression_id", "candidates"])
        keys = zip(table["picture"].to_pylist(), table["expression_id"].to_pylist(), strict=True)
        lengths = pc.list_value_length(table["candidates"]).to_pylist()
        counts.update(zip(keys, lengths, strict=True))
    return counts


def overlaps_by_candidates(results: Node, counts: Mapping[SentenceKey, int]) -> dict[str, Overlaps]:
    """Return the pixel counts of a results table by `candidate_group`.

    A sentence that `counts` lacks has no candidate.
    """
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    columns = ["picture", "expression_id", "intersection", "union"]
    for row in results.read_all(columns=columns).to_pylist():
        group = candidate_group(counts.get(sentence_key(row), 0))
        found[group].append((row["intersection"], row["union"]))
    return {group: Overlaps.of(pairs) for group, pairs in found.items()}

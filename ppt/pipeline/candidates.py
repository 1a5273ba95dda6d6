"""How the sentences of the evaluation split fare by the number of their candidates.

The candidates are those that the labelling of H would find: what a sentence leaves to choose from,
and the same for every row. For the diagnosis of a finished run only: the labels of the evaluation
split are in no run's record, so nothing that trains or chooses can name them.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow.compute as pc

from ppt.config import Labels
from ppt.diagnosis import candidate_group
from ppt.metrics import RunningMetrics
from ppt.pipeline import features
from ppt.pipeline.label import label, phrases_of
from ppt.pipeline.passes import Pool
from ppt.pipeline.record import RunRecord
from ppt.schema import SentenceKey, sentence_key
from ppt.store import Node, Store


def count_candidates(record: RunRecord, pool: Pool, labels: Labels) -> dict[SentenceKey, int]:
    """By sentence of the evaluation split, the candidates that `labels` finds for it, if any."""
    curriculum, samples = record.curriculum, record.nodes["samples.evaluation"]
    store = Store(curriculum.store)
    rows = samples.read_all(columns=["picture", "class_name", "expressions"]).to_pylist()
    phrases = features.encode_phrases(
        store,
        pool,
        [*(phrase.text for row in rows for phrase in phrases_of(row, labels.chunker)), ""],
        curriculum.model.clip,
        name="evaluation",
        num_buckets=curriculum.num_buckets,
    )
    found = label(
        store,
        pool,
        samples,
        record.nodes["features.evaluation"],
        phrases,
        model=curriculum.model,
        labels=labels,
        recipe=labels.referring,
        name="evaluation, for the diagnosis",
    )
    counts: dict[SentenceKey, int] = {}
    for bucket in range(found.num_buckets):
        table = found.read(bucket, columns=["picture", "expression_id", "candidates"])
        keys = zip(table["picture"].to_pylist(), table["expression_id"].to_pylist(), strict=True)
        lengths = pc.list_value_length(table["candidates"]).to_pylist()
        counts.update(zip(keys, lengths, strict=True))
    return counts


def metrics_by_candidates(
    results: Node, counts: Mapping[SentenceKey, int]
) -> dict[str, RunningMetrics]:
    """The metrics of results by `candidate_group`; a sentence that `counts` lacks has none."""
    found: dict[str, RunningMetrics] = {}
    columns = ["picture", "expression_id", "intersection", "union"]
    for bucket in range(results.num_buckets):
        for row in results.read(bucket, columns=columns).to_pylist():
            group = candidate_group(counts.get(sentence_key(row), 0))
            metrics = found.setdefault(group, RunningMetrics())
            metrics.update(row["intersection"], row["union"])
    return found

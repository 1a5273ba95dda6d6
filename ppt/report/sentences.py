"""The per-sentence results of baselines and stages side by side: by kind, and what changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ppt.evaluation.outcomes import CHANGE, FOUND
from ppt.store.schema import sentence_key
from ppt.tracking.record import RunRecord

KINDS = ("class", "colour", "position", "relation")
"""The kinds of expressions, from simple to difficult."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Sentence:
    """A held-out sentence."""

    picture: str
    expression_id: str
    text: str
    kind: str


@dataclass(frozen=True)
class Comparison:
    """The IoU of every sentence under every method; `iou[name][i]` belongs to `sentences[i]`."""

    sentences: list[Sentence]
    iou: dict[str, np.ndarray]  # in 0..1, by baseline or stage in the order of the run
    start: str | None  # the best baseline, with which the first stage is compared

    @property
    def kinds(self) -> list[str]:
        """The kinds that occur, from simple to difficult; unfamiliar kinds come last."""
        found = Counter(s.kind for s in self.sentences)
        return [k for k in KINDS if k in found] + sorted(found.keys() - set(KINDS))

    def of_kind(self, kind: str) -> np.ndarray:
        """Return a bool array, one value for each sentence, that marks the sentences of a kind."""
        return np.array([s.kind == kind for s in self.sentences], bool)

    def by_kind(self, name: str) -> dict[str, float]:
        """Return the mIoU of a method for each kind, in percent."""
        return {k: float(100 * self.iou[name][self.of_kind(k)].mean()) for k in self.kinds}


@dataclass(frozen=True)
class Change:
    """The differences between the results of one training and those of the training before."""

    before: str
    after: str
    improved: int  # sentences whose IoU rose by at least `CHANGE`
    worsened: int  # sentences whose IoU fell by at least `CHANGE`
    unchanged: int
    found: int  # sentences whose IoU rose from below `FOUND` to at least that
    lost: int  # sentences whose IoU fell below `FOUND`
    by_kind: dict[str, float]  # difference of the mIoU in percentage points
    difference: float  # of the mIoU of all sentences, in percentage points


def compare(record: RunRecord) -> Comparison:
    """Join the results tables of a run by sentence, without reading their masks."""
    names = list(record.metrics())
    columns = ["picture", "expression_id", "text", "kind", "iou"]
    tables = {name: record.results(name).read_all(columns=columns).to_pylist() for name in names}
    first = sorted(tables[names[0]], key=sentence_key)
    iou = {}
    for name, rows in tables.items():
        by_key = {sentence_key(row): row["iou"] for row in rows}
        iou[name] = np.array([by_key[sentence_key(row)] for row in first], np.float64)
    sentences = [
        Sentence(row["picture"], row["expression_id"], row["text"], row["kind"] or UNKNOWN)
        for row in first
    ]
    return Comparison(sentences, iou, record.best_baseline)


def changes(record: RunRecord, comparison: Comparison) -> Iterator[Change]:
    """Yield a `Change` for each stage against the stage before.

    The first stage is compared with the best baseline; without baselines it has no `Change`.
    """
    before = comparison.start
    for stage in record.stages:
        if before is not None:
            yield _change(comparison, before, stage.name)
        before = stage.name


def _change(comparison: Comparison, before: str, after: str) -> Change:
    old, new = comparison.iou[before], comparison.iou[after]
    kinds_before, kinds_after = comparison.by_kind(before), comparison.by_kind(after)
    improved, worsened = int((new - old >= CHANGE).sum()), int((old - new >= CHANGE).sum())
    return Change(
        before,
        after,
        improved,
        worsened,
        len(old) - improved - worsened,
        found=int(((old < FOUND) & (new >= FOUND)).sum()),
        lost=int(((old >= FOUND) & (new < FOUND)).sum()),
        by_kind={kind: kinds_after[kind] - kinds_before[kind] for kind in comparison.kinds},
        difference=float(100 * (new - old).mean()) if len(old) else 0.0,
    )

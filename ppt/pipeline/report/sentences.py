"""Per-sentence results of baselines and stages side by side: by kind, and what changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ppt.diagnosis import CHANGE
from ppt.pipeline.record import RunRecord
from ppt.pipeline.summary import best_baseline
from ppt.schema import sentence_key

KINDS = ("class", "colour", "position", "relation")
UNKNOWN = "unknown"

FOUND = 0.5
"""A referent counts as found from this IoU on, as in P@0.5."""


@dataclass(frozen=True)
class Sentence:
    picture: str
    expression_id: str
    text: str
    kind: str


@dataclass(frozen=True)
class Comparison:
    """IoU of every sentence under every method; `iou[name][i]` belongs to `sentences[i]`."""

    sentences: list[Sentence]
    iou: dict[str, np.ndarray]  # by baseline or stage, in the order of the run; 0..1
    start: str | None  # the best baseline: what the first stage is compared with

    @property
    def kinds(self) -> list[str]:
        """The kinds that occur, simple ones first."""
        found = Counter(s.kind for s in self.sentences)
        return [k for k in KINDS if k in found] + sorted(found.keys() - set(KINDS))

    def of_kind(self, kind: str) -> np.ndarray:
        """bool [sentences]"""
        return np.array([s.kind == kind for s in self.sentences], bool)

    def by_kind(self, name: str) -> dict[str, float]:
        """mIoU in percent by kind."""
        return {k: float(100 * self.iou[name][self.of_kind(k)].mean()) for k in self.kinds}


@dataclass(frozen=True)
class Change:
    """What one step of the curriculum did to the sentences."""

    before: str
    after: str
    improved: int
    worsened: int
    unchanged: int
    found: int  # IoU rose through 0.5
    lost: int  # IoU fell through 0.5
    by_kind: dict[str, float]  # difference of mIoU in points
    difference: float  # of the mIoU of all sentences, in points


def compare(record: RunRecord) -> Comparison:
    """The results tables of a run, joined by sentence, without their masks."""
    names = [*record.baselines, *(stage.name for stage in record.stages)]
    columns = ["picture", "expression_id", "text", "kind", "iou"]
    tables = {
        name: record.nodes[f"results.{name}"].read_all(columns=columns).to_pylist()
        for name in names
    }
    first = sorted(tables[names[0]], key=sentence_key)
    iou = {}
    for name, rows in tables.items():
        by_key = {sentence_key(row): row["iou"] for row in rows}
        iou[name] = np.array([by_key[sentence_key(row)] for row in first], np.float64)
    sentences = [
        Sentence(row["picture"], row["expression_id"], row["text"], row["kind"] or UNKNOWN)
        for row in first
    ]
    return Comparison(sentences, iou, best_baseline(record.baselines))


def changes(record: RunRecord, comparison: Comparison) -> Iterator[Change]:
    """One `Change` for each stage: against the stage before, the first against the baseline."""
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

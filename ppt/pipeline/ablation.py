"""The rows of an ablation, one curriculum each, over seeds: trained, measured, explained.

Every row is a run of `run_curriculum` in one store, so what rows have in common (encodings, labels,
stages that begin alike) is made once, and running again goes on where it stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ppt.config import ConfigError, Curriculum, Labels, load_row
from ppt.diagnosis import OUTCOMES, Outcome, outcome
from ppt.masks import mask_area
from ppt.metrics import RunningMetrics
from ppt.pipeline import ingest
from ppt.pipeline.candidates import count_candidates, metrics_by_candidates
from ppt.pipeline.cluster import connected
from ppt.pipeline.curriculum import run_curriculum
from ppt.pipeline.label_quality import LabelQuality, measure_labels, quality_by_source
from ppt.pipeline.negative_points import decode_without_negatives
from ppt.pipeline.passes import Pool
from ppt.pipeline.progress import console
from ppt.pipeline.record import Metrics, RunRecord, StageRecord, stage_epochs
from ppt.store import Node, Store
from ppt.table3 import TABLE3, PaperRow

ALL = "all"
"""The group of all sentences, beside those of one kind of expression."""


@dataclass(frozen=True)
class Measured:
    """One line of the table with one seed: what a row's last stage, or its baseline, reached."""

    record: RunRecord
    metrics: Metrics
    outcomes: dict[str, Counter[Outcome]]  # by kind of expression, and ALL
    by_candidates: dict[str, RunningMetrics]  # by group of sentences
    labels: dict[str, list[LabelQuality]] = field(default_factory=dict)  # d_sem, h, h.1, ...
    without_negatives: Node | None = None  # of what is trained


@dataclass
class Line:
    """A line of the table: a row over its seeds."""

    name: str  # row5; row1 has a second line, "row1, best recipe"
    title: str
    paper: PaperRow | None
    by_seed: dict[int, Measured] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        return float(np.mean([m.metrics[metric] for m in self.by_seed.values()]))

    def spread(self, metric: str) -> float | None:
        """Standard deviation over seeds (n - 1); None with one seed."""
        values = [m.metrics[metric] for m in self.by_seed.values()]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass
class Ablation:
    """All that came of it."""

    name: str
    seeds: Sequence[int]
    lines: list[Line]
    stage_epochs: int  # trained for all rows and seeds, what they share once
    stage_epochs_unshared: int
    num_sentences: int


def load_rows(
    folder: Path, overrides: Sequence[str], base: Path | None, seeds: Sequence[int]
) -> dict[str, list[Curriculum]]:
    """By row, its curriculum for each seed; each is a run `<row>.seed<N>`. Raises ConfigError."""
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise ConfigError(
            f"no curricula in {str(folder)!r}: give a folder of YAML files, one a row"
        )
    rows: dict[str, list[Curriculum]] = {}
    for path in files:
        for seed in seeds:
            curriculum = load_row(path, [*overrides, f"seed={seed}"], base)
            name = curriculum.name
            if any(c.seed == seed for c in rows.get(name, [])):
                raise ConfigError(f"{path}: name {name!r} is another row's already")
            named = curriculum.model_copy(update={"name": f"{name}.seed{seed}"})
            rows.setdefault(name, []).append(named)
    return rows


def run_ablation(name: str, rows: dict[str, list[Curriculum]]) -> Ablation:
    """Run every row with every seed, then explain where each stands."""
    first = next(iter(rows.values()))[0]
    resources = first.resources
    total = sum(map(len, rows.values()))
    records: list[tuple[str, RunRecord]] = []
    lines: dict[str, Line] = {}
    num_sentences = 0
    with connected(resources):
        for row, curricula in rows.items():
            for curriculum in curricula:
                console.rule(f"{row}, seed {curriculum.seed} ({len(records) + 1} of {total})")
                records.append((row, run_curriculum(curriculum)))
        pool = Pool(resources)  # only now: it would take what training needs
        try:
            for row, record in records:
                # Candidates by one recipe: a sentence is in the same group for every row.
                for line, measured in _measure(row, record, pool, first.labels):
                    lines.setdefault(line.name, line).by_seed[record.curriculum.seed] = measured
                    num_sentences = sum(measured.outcomes[ALL].values())
        finally:
            pool.close()
    shared, unshared = stage_epochs(
        (stage.checkpoint.digest, stage.num_epochs) for _, r in records for stage in r.stages
    )
    seeds = sorted({c.seed for curricula in rows.values() for c in curricula})
    return Ablation(name, seeds, list(lines.values()), shared, unshared, num_sentences)


def _measure(
    row: str, record: RunRecord, pool: Pool, labels: Labels
) -> list[tuple[Line, Measured]]:
    """The lines that a run fills: one, or CLIP + SAM's two where nothing is trained."""
    paper = TABLE3.get(row)
    title = paper.title if paper else row
    counts = count_candidates(record, pool, labels)
    if record.stages:
        stage = chosen_stage(record)
        measured = Measured(
            record,
            stage.metrics,
            outcomes(stage.results),
            metrics_by_candidates(stage.results, counts),
            label_qualities(record, pool),
            _without_negatives(record, stage, pool),
        )
        return [(Line(row, title, paper), measured)]
    names = {
        "clip_sam_published": Line(row, f"{title}, as published", paper),
        "clip_sam_best": Line(f"{row}, best recipe", f"{title}, best recipe", None),
    }
    lines = []
    for name, line in names.items():
        results = record.nodes[f"results.{name}"]
        by_candidates = metrics_by_candidates(results, counts)
        measured = Measured(record, record.baselines[name], outcomes(results), by_candidates)
        lines.append((line, measured))
    return lines


def chosen_stage(record: RunRecord) -> StageRecord:
    """The stage that is the model of a run that trains."""
    assert record.chosen is not None  # a run with stages has a model
    return next(stage for stage in record.stages if stage.name == record.chosen.stage)


def _without_negatives(record: RunRecord, stage: StageRecord, pool: Pool) -> Node:
    curriculum, nodes = record.curriculum, record.nodes
    return decode_without_negatives(
        Store(curriculum.store),
        pool,
        stage.results,
        nodes["features.evaluation"],
        nodes["ground_truth.evaluation"],
        curriculum.model,
        name=curriculum.name,
    )


def outcomes(results: Node) -> dict[str, Counter[Outcome]]:
    """How often each outcome comes, over all sentences and by kind of expression."""
    found: dict[str, Counter[Outcome]] = {ALL: Counter(dict.fromkeys(OUTCOMES, 0))}
    columns = ["kind", "intersection", "union", "mask", "picture"]
    for bucket in range(results.num_buckets):
        for row in results.read(bucket, columns=columns).to_pylist():
            predicted = mask_area(row["mask"])
            target = row["union"] + row["intersection"] - predicted
            what = outcome(row["intersection"], predicted, target)
            found[ALL][what] += 1
            if row["kind"]:
                found.setdefault(row["kind"], Counter(dict.fromkeys(OUTCOMES, 0)))[what] += 1
    return found


def label_qualities(record: RunRecord, pool: Pool) -> dict[str, list[LabelQuality]]:
    """D_sem's labels and H's after each Select, against the training pictures' truth if there is
    one."""
    curriculum = record.curriculum
    store = Store(curriculum.store)
    found = {}
    for role, prefix, flip_seed in (
        ("object_centric", "labels.d_sem", curriculum.seed),
        ("referring", "labels.h", None),
    ):
        try:
            truth = ingest.prepare_ground_truth(
                store,
                pool,
                getattr(curriculum.data, role),
                name=role,
                num_buckets=curriculum.num_buckets,
                flip_seed=flip_seed,
            )
        except ValueError:  # one's own pictures need no masks
            continue
        if not truth.counts()["expressions"]["out"]:
            continue  # nor have photographs of a class
        for name, node in record.nodes.items():
            if name == prefix or name.startswith(f"{prefix}."):
                measured = measure_labels(store, pool, node, truth)
                found[name.removeprefix("labels.")] = quality_by_source(measured)
    return found

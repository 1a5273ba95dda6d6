"""An ablation: each row is a curriculum, which is trained and measured with every seed.

Every row is a run of `run_curriculum` in one store. What rows have in common (encodings, labels,
equal first stages) is therefore made once, and running an interrupted ablation again continues it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ppt.config import ConfigError, Curriculum, Labels, load_row
from ppt.config.named import near_curricula
from ppt.curriculum.inputs import check_inputs
from ppt.curriculum.run import run_curriculum
from ppt.evaluation.metrics import Overlaps
from ppt.evaluation.outcomes import OUTCOMES, Outcome, outcome
from ppt.experiments.candidate_groups import count_candidates, overlaps_by_candidates
from ppt.experiments.table3 import TABLE3, PaperRow
from ppt.images.masks import mask_area
from ppt.steps.label_quality import LabelQuality, MeasureLabels, quality_by_source
from ppt.steps.prepare import PrepareGroundTruth, open_source
from ppt.steps.progress import console
from ppt.steps.runner import Runner
from ppt.store.nodes import Node
from ppt.tracking.record import DataName, Metrics, RunRecord, StageRecord, stage_epochs

ALL = "all"
"""The name of the group of all sentences, beside the groups of each kind of expression."""


@dataclass(frozen=True)
class Measured:
    """The results of a line of the table with one seed: of the chosen stage or of a baseline."""

    record: RunRecord
    metrics: Metrics
    outcomes: dict[str, Counter[Outcome]]  # by kind of expression, and for ALL
    by_candidates: dict[str, Overlaps]  # by `candidate_group`
    labels: dict[str, list[LabelQuality]] = field(default_factory=dict)  # d_sem, h, h.1, ...
    trained: Node | None = None  # the results of the chosen stage; None for a baseline


@dataclass
class Line:
    """A line of the table: one row of the ablation over its seeds."""

    name: str  # such as row5; row1 has a second line, "row1, best recipe"
    title: str
    paper: PaperRow | None
    by_seed: dict[int, Measured] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the seeds, in percent."""
        return float(np.mean([m.metrics[metric] for m in self.by_seed.values()]))

    def spread(self, metric: str) -> float | None:
        """Return the standard deviation (n - 1) of a metric over the seeds; None with one seed."""
        values = [m.metrics[metric] for m in self.by_seed.values()]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass
class Ablation:
    """The results of an ablation."""

    name: str
    seeds: Sequence[int]
    lines: list[Line]
    stage_epochs: int  # epochs of all rows and seeds, with shared ones counted once
    stage_epochs_unshared: int  # epochs of all rows and seeds, as if nothing were shared
    num_sentences: int


def load_rows(
    folder: Path, overrides: Sequence[str], base: Path | None, seeds: Sequence[int]
) -> dict[str, list[Curriculum]]:
    """Load the curricula of each row, one for each seed.

    Args:
        folder: a folder with one YAML file for each row.
        overrides: overrides `key=value` of all rows.
        base: a curriculum that replaces the `base` of the rows.
        seeds: the seeds.

    Returns:
        The curricula of each row, by the row's name. Each one is named `<row>.seed<N>`.

    Raises:
        ConfigError: if there is no row, a curriculum is invalid or two rows have the same name.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        hint = near_curricula(folder, folder=True) or ": give a folder of YAML files, one a row"
        raise ConfigError(f"no curricula in {str(folder)!r}{hint}")
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


OpenRunner = Callable[[Curriculum], AbstractContextManager[Runner]]
"""A function that opens the runner of a curriculum for the duration of a `with` block."""


def run_ablation(name: str, rows: dict[str, list[Curriculum]], open_runner: OpenRunner) -> Ablation:
    """Run every row with every seed, and measure what each run reached.

    `name` is the name of the ablation, and `rows` are the curricula of each row by its name. Raises
    ConfigError, before any work begins, if a curriculum cannot be run as it is.
    """
    for curricula in rows.values():
        for curriculum in curricula:
            check_inputs(curriculum)
    first = next(iter(rows.values()))[0]
    total = sum(map(len, rows.values()))
    records: list[tuple[str, RunRecord]] = []
    lines: dict[str, Line] = {}
    num_sentences = 0
    for row, curricula in rows.items():
        for curriculum in curricula:
            console.rule(f"{row}, seed {curriculum.seed} ({len(records) + 1} of {total})")
            with open_runner(curriculum) as runner:
                records.append((row, run_curriculum(curriculum, runner)))
    with open_runner(first) as runner:
        for row, record in records:
            # One recipe finds the candidates for all rows, so each sentence keeps its group.
            for line, measured in _measure(row, record, runner, first.labels):
                lines.setdefault(line.name, line).by_seed[record.curriculum.seed] = measured
                num_sentences = sum(measured.outcomes[ALL].values())
    shared, unshared = stage_epochs(
        (stage.checkpoint.digest, stage.num_epochs) for _, r in records for stage in r.stages
    )
    seeds = sorted({c.seed for curricula in rows.values() for c in curricula})
    return Ablation(name, seeds, list(lines.values()), shared, unshared, num_sentences)


def _measure(
    row: str, record: RunRecord, runner: Runner, labels: Labels
) -> list[tuple[Line, Measured]]:
    """Return the lines that a run fills.

    A run that trains fills one line. If nothing is trained, there are two lines for CLIP + SAM: one
    with the published recipe and one with the best recipe.
    """
    paper = TABLE3.get(row)
    title = paper.title if paper else row
    counts = count_candidates(record, runner, labels)
    if record.stages:
        stage = chosen_stage(record)
        measured = Measured(
            record,
            stage.metrics,
            outcomes(stage.results),
            overlaps_by_candidates(stage.results, counts),
            label_qualities(record, runner),
            stage.results,
        )
        return [(Line(row, title, paper), measured)]
    names = {
        "clip_sam_published": Line(row, f"{title}, as published", paper),
        "clip_sam_best": Line(f"{row}, best recipe", f"{title}, best recipe", None),
    }
    lines = []
    for name, line in names.items():
        results = record.results(name)
        by_candidates = overlaps_by_candidates(results, counts)
        measured = Measured(
            record, record.baselines[name].metrics, outcomes(results), by_candidates
        )
        lines.append((line, measured))
    return lines


def chosen_stage(record: RunRecord) -> StageRecord:
    """Return the stage whose checkpoint is the run's model. The run must have trained a stage."""
    assert record.chosen is not None  # a run with stages has chosen a model
    return record.stage(record.chosen.stage)


def outcomes(results: Node) -> dict[str, Counter[Outcome]]:
    """Count each outcome, over all sentences (`ALL`) and by kind of expression."""
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


def label_qualities(record: RunRecord, runner: Runner) -> dict[str, list[LabelQuality]]:
    """Measure pseudo labels of training pictures against the ground truth, if there is any.

    The labels are those of D_sem (`d_sem`), and those of H before the first Select and after each
    one (`h`, `h.1`, ...). Data sets without masks are left out.
    """
    found = {}
    measured: tuple[tuple[DataName, dict[str, Node]], ...] = (
        ("object_centric", {"d_sem": record.data["object_centric"].labels}),
        ("referring", _labels_of_h(record)),
    )
    for name, labels in measured:
        data = getattr(record.curriculum.data, name)
        try:
            _ = open_source(data).ground_truth_fingerprint
        except ValueError:  # this data set has no ground truth
            continue
        truth = runner.run(
            PrepareGroundTruth(data, record.data[name].samples, name, name == "object_centric")
        )
        if not truth.counts()["expressions"]["out"]:
            continue  # no picture of this data set has a mask
        for shown, node in labels.items():
            found[shown] = quality_by_source(runner.run(MeasureLabels(node, truth)))
    return found


def _labels_of_h(record: RunRecord) -> dict[str, Node]:
    """Return H's labels by name: `h` before the first Select, then `h.1` and so on."""
    names = ("h", *(f"h.{number}" for number in range(1, len(record.selected) + 1)))
    return dict(zip(names, record.rounds(), strict=True))

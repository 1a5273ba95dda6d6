"""The record of a run: its tables by data set and role, and the figures of each stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ppt.config import Curriculum, ModelSelection, PointRecipe
from ppt.evaluation.protocols import OURS, Protocol
from ppt.models.confidence import Calibration
from ppt.store.nodes import Node
from ppt.training.stage import EpochMetrics

DataName = Literal["referring", "object_centric", "validation", "evaluation", "d_ref"]
"""The four data sets of a curriculum, and D_ref, which is made from `object_centric`."""

EVALUATION: DataName = "evaluation"
"""The held-out split, on which a run is measured unless another split is asked for."""

Metrics = Mapping[str, float]
"""The metrics in percent by name, as returned by `ppt.evaluation.metrics.measure`."""

Role = Literal["samples", "ground_truth", "features", "words", "phrases", "labels"]
ROLES: tuple[Role, ...] = get_args(Role)
"""All roles, in the order in which a run makes its tables."""


class Tables:
    """The tables of one data set by role. A role has no value until its step has been run."""

    samples: Node
    ground_truth: Node  # of the validation and evaluation splits only
    features: Node
    words: Node
    phrases: Node
    labels: Node  # for H, the labels of round 0

    def has(self, role: Role) -> bool:
        """Return whether the step that makes the role's table has been run."""
        return hasattr(self, role)


@dataclass
class StageRecord:
    """The record of one training: that of a stage, or of one round of a stage."""

    name: str  # e.g. ris_joint, domain_refinement.1
    stage: str  # the key in the curriculum
    checkpoint: Node
    results: Node  # per-sentence results on the record's split
    metrics: Metrics
    evidence: Node  # from which its scores are made
    mismatched: Node  # evidence on sentences of other pictures of the record's split
    calibration: Calibration  # of that evidence
    diagnosis: Metrics  # the figures of `ppt.evaluation.diagnosis`, in percent
    history: list[EpochMetrics]
    num_epochs: int
    seconds: float  # wall-clock time of the training
    selected: Node | None = None  # the labels that Select made before this training
    on_validation: Node | None = None  # validation results, if `model_selection` needs any


@dataclass
class BaselineRecord:
    """The results of CLIP + SAM without training, prompted by one point recipe."""

    recipe: PointRecipe
    results: Node
    metrics: Metrics


@dataclass(frozen=True)
class Chosen:
    """The stage whose checkpoint is the run's model, and the criterion that chose it."""

    stage: str
    by: ModelSelection
    # The mIoU of each stage on the validation split in percent; empty for `last`.
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Named:
    """A node with the name that it has in `summary.json`, in MLflow and in tables of counts."""

    role: str  # a `Role`, `checkpoints`, `evidence` or `results`
    name: str  # the name of a data set, labels, a stage or a baseline
    step: str  # the step that made the node, for display: encode.referring, select.h.1
    node: Node

    @property
    def full_name(self) -> str:
        """The role and the name, such as `labels.h.1`."""
        return f"{self.role}.{self.name}"


_STEPS = {
    "samples": "prepare",
    "ground_truth": "ground_truth",
    "features": "encode",
    "words": "encode_words",
    "phrases": "encode_phrases",
    "labels": "label",
    "results": "evaluate",
    "checkpoints": "train",
}

_LABELS = {"object_centric": "d_sem", "referring": "h"}
"""The names of labels that differ from the names of their data sets."""


@dataclass
class RunRecord:
    """All that is known about one run of a curriculum."""

    curriculum: Curriculum
    folder: str  # runs/<name>, a local folder (see folder.py)
    data: dict[DataName, Tables] = field(
        default_factory=lambda: {name: Tables() for name in get_args(DataName)}
    )
    candidates: Node | None = None  # H's labels before referents were chosen without Select
    selected: list[Node] = field(default_factory=list)  # H's labels after each Select, in order
    baselines: dict[str, BaselineRecord] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)
    split: DataName = EVALUATION  # the split on which baselines and stages are measured
    protocol: Protocol = OURS  # the protocol by which they are measured
    chosen: Chosen | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # by step, in this invocation
    report: Path | None = None  # the page, once it is written

    @property
    def home(self) -> str:
        """The run's folder as users find it: a URL if the store has one, else a local path."""
        store = self.curriculum.store
        return f"{store.rstrip('/')}/{self.curriculum.name}" if "://" in store else self.folder

    def results(self, method: str) -> Node:
        """Return the per-sentence results of a baseline or a stage."""
        if method in self.baselines:
            return self.baselines[method].results
        return self.stage(method).results

    def stage(self, name: str) -> StageRecord:
        """Return the record of a stage or a round by its name. Raises KeyError if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def metrics(self) -> dict[str, Metrics]:
        """Return the metrics of every baseline and stage, in the order of the run."""
        return {
            **{name: baseline.metrics for name, baseline in self.baselines.items()},
            **{stage.name: stage.metrics for stage in self.stages},
        }

    @property
    def best_baseline(self) -> str | None:
        """The name of the baseline with the highest mIoU, or None if there is no baseline."""
        return max(self.baselines, key=lambda b: self.baselines[b].metrics["mIoU"], default=None)

    def rounds(self) -> list[Node]:
        """Return the labels of H: those of round 0, then those after each Select."""
        return [self.data["referring"].labels, *self.selected]

    def named(self) -> Iterator[Named]:
        """Yield every table and checkpoint with its name. No other function makes these names."""
        for name, tables in self.data.items():
            for role in ROLES:
                if tables.has(role):
                    of = _LABELS.get(name, name) if role == "labels" else name
                    step = "synthesise" if name == "d_ref" and role == "samples" else _STEPS[role]
                    yield Named(role, of, f"{step}.{of}", getattr(tables, role))
        if self.candidates:
            yield Named("labels", "h_candidates", "label.h_candidates", self.candidates)
        for number, node in enumerate(self.selected, 1):
            yield Named("labels", f"h.{number}", f"select.h.{number}", node)
        for method, baseline in self.baselines.items():
            yield Named("results", method, f"evaluate.{method}", baseline.results)
        for stage in self.stages:
            yield Named("checkpoints", stage.name, f"train.{stage.name}", stage.checkpoint)
            yield Named("evidence", stage.name, f"evidence.{stage.name}", stage.evidence)
            on = f"{self.split}.{stage.name}"
            yield Named("evidence", on, f"evidence.{on}", stage.mismatched)
            yield Named("results", stage.name, f"evaluate.{stage.name}", stage.results)
            if stage.on_validation:
                on = f"validation.{stage.name}"
                yield Named("results", on, f"evaluate.{on}", stage.on_validation)


def stage_epochs(trained: Iterable[tuple[str, int]]) -> tuple[int, int]:
    """Count the epochs of several trainings, with and without sharing.

    Args:
        trained: the digest of the checkpoint and the number of epochs of each training.

    Returns:
        The sum with each checkpoint counted once, and the sum over all trainings.
    """
    pairs = list(trained)
    return sum(dict(pairs).values()), sum(epochs for _, epochs in pairs)

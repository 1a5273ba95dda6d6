"""What a run has made: the nodes by name, the figures by stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ppt.config import Curriculum, ModelSelection, PointRecipe
from ppt.pipeline.monitor import EpochMetrics
from ppt.protocols import OURS, Protocol
from ppt.store import Node

EVALUATION = "evaluation"
"""The held-out split: what a run is measured on unless another is asked for."""

Metrics = Mapping[str, float]
"""mIoU, oIoU and P@X in percent, as `RunningMetrics.as_dict` gives them."""


@dataclass
class StageRecord:
    """One training run of the curriculum: a stage, or one round of the refinement."""

    name: str  # e.g. ris_joint, domain_refinement.1
    stage: str  # the key in the curriculum
    checkpoint: Node
    results: Node  # per-sentence results on the record's split
    metrics: Metrics
    history: list[EpochMetrics]
    num_epochs: int
    seconds: float  # wall clock of the training when it was done
    selected: Node | None = None  # the labels that Select made before it


@dataclass(frozen=True)
class Chosen:
    """The stage whose checkpoint is the run's model, and what chose it."""

    stage: str
    by: ModelSelection
    scores: Mapping[str, float] = field(default_factory=dict)  # mIoU on validation; `last` has none


@dataclass
class RunRecord:
    """Everything about one run of a curriculum.

    `nodes` has dotted names: samples.{referring,object_centric,validation,evaluation,d_ref},
    ground_truth.*, features.*, words.*, phrases.*, labels.{d_sem,h,d_ref} (h is round 0,
    made of labels.h_candidates where referents are chosen without Select),
    labels.h.1, labels.h.2, ... (after each Select; counted over the whole run),
    checkpoints.<stage name>, results.{clip_sam_published,clip_sam_best,<stage name>}. Where the
    model is chosen on the validation split: labels.validation, results.validation.<stage name>.
    """

    curriculum: Curriculum
    folder: str  # runs/<name>, a local folder (see folder.py)
    nodes: dict[str, Node] = field(default_factory=dict)
    baselines: dict[str, Metrics] = field(default_factory=dict)
    recipes: dict[str, PointRecipe] = field(default_factory=dict)  # by baseline
    stages: list[StageRecord] = field(default_factory=list)
    split: str = EVALUATION  # what baselines and stages are measured on
    protocol: Protocol = OURS  # and how
    chosen: Chosen | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # by step, this invocation
    report: Path | None = None  # the page, once it is written

    @property
    def home(self) -> str:
        """Where the run's folder is to be looked for: its URL, if the store has one."""
        store = self.curriculum.store
        return f"{store.rstrip('/')}/{self.curriculum.name}" if "://" in store else self.folder


def stage_epochs(trained: Iterable[tuple[str, int]]) -> tuple[int, int]:
    """Epochs of (checkpoint's digest, num_epochs) pairs: with what is shared counted once, and
    as they would be were nothing shared."""
    pairs = list(trained)
    return sum(dict(pairs).values()), sum(epochs for _, epochs in pairs)

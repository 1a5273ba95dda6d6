"""The configuration of a run, and the reference of its keys: one YAML file is one `Curriculum`.

An unknown key, a wrong type and a value out of range are a `ConfigError` that names the key and the
value. `load_curriculum` reads the YAML and applies overrides such as
`stages.semantic_alignment.num_epochs=2`. A key with a default may be left out. "(our choice)" marks
what the paper does not determine.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ppt.config.data_formats import ObjectCentricData, ReferringData, Seed
from ppt.config.messages import near, shown
from ppt.config.stage_kinds import STAGE_KINDS

SourceName = Literal["d_sem", "d_ref", "h_sem", "h_ref"]
"""The four sources of training samples: D_sem, D_ref, H_sem and H_ref (Section 3.3)."""

SOURCES: tuple[SourceName, ...] = get_args(SourceName)


class ConfigError(ValueError):
    """A mistake in the user's configuration. The message names the key and the value."""


class _Config(BaseModel):
    """A group of keys: unknown ones are refused, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# ---------------------------------------------------------------- names

_RESERVED_BY_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)

RUN_NAMES_IN_USE = ("store", "uses", "locks", "ray-tune")
"""Folders of a store that are not those of a run."""

STAGE_NAMES_IN_USE = (
    *("clip_sam_published", "clip_sam_best"),
    *("referring", "object_centric", "validation", "evaluation", "d_ref"),
    *("prepare", "encode", "label", "synthesise", "select", "evaluate"),
    *("results", "rounds", "lavt", "cris"),
)
"""Names that a run's results, its summary or a command's options have for something else: the
baselines, the data sets, the commands, the folders and the protocols."""


def _name_check(punctuation: str, most: int, in_use: Collection[str]) -> AfterValidator:
    """Return a check that a text can name a file on any system, and does not name another one.

    Args:
        punctuation: the characters that are permitted beside letters and digits.
        most: the largest number of characters.
        in_use: names that mean something else, in lower case.
    """
    pattern = re.compile(rf"[A-Za-z0-9][A-Za-z0-9{re.escape(punctuation)}]*")

    def check(name: str) -> str:
        if not pattern.fullmatch(name) or len(name) > most or name.endswith("."):
            raise ValueError(
                f"must have 1 to {most} of A-Z, a-z, 0-9 and {' '.join(punctuation)}, begin with a "
                f"letter or digit and not end with a dot, got {shown(name)}"
            )
        if name.lower() in in_use:
            raise ValueError(f"{name!r} is the name of something else here: choose another name")
        if _RESERVED_BY_WINDOWS.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a file's name on Windows: choose another name")
        return name

    return AfterValidator(check)


RunName = Annotated[str, _name_check("_.+-", 100, RUN_NAMES_IN_USE)]
"""The name of a run or a sweep, which is that of its folder in the store."""

StageName = Annotated[str, _name_check("_-", 60, STAGE_NAMES_IN_USE)]
"""The name of a stage, which is that of its files; `.` separates it from the number of a round."""


def _check_store(store: str) -> str:
    unwritable = any(unicodedata.category(c) in ("Cc", "Cs") for c in store)
    if unwritable or store != store.strip() or not store:
        raise ValueError(
            "must be the path of a folder or a URL, without control characters and without blanks "
            f"at its ends, got {shown(store)}"
        )
    return store


StorePath = Annotated[str, AfterValidator(_check_store)]
"""The folder or fsspec URL of a store."""


# ---------------------------------------------------------------- data


class Data(_Config):
    """The four data sets of a run.

    The key `format` of each selects a class in `ppt/config/data_formats.py`; the other keys are the
    fields of that class, which is in `ppt/data/`.
    """

    # Pictures with expressions to train on; their masks, if there are any, are not read.
    referring: ReferringData
    # Pictures of one object with the name of its class, to train on.
    object_centric: ObjectCentricData
    # Pictures with expressions and masks, to choose settings by.
    validation: ReferringData
    # Pictures with expressions and masks, to measure on and for nothing else.
    evaluation: ReferringData


# ---------------------------------------------------------------- models


class ClipConfig(_Config):
    """The frozen CLIP."""

    # "toybox" for the embedded CLIP, or open_clip's name of a plain ViT.
    name: str = "toybox"
    # The path of a file, one of open_clip's tags, or "random" for tests of full-size nets.
    weights: str | None = Field(None, min_length=1)
    # The side in pixels to which pictures are resized; null for the size of the model.
    image_size: int | None = Field(None, gt=0, le=4_096)
    # The image blocks, counted from 1, after which features are taken for the point generator.
    # Null for the toybox's own, otherwise the last block of each third (our choice but for ViT-B).
    taps: tuple[int, ...] | None = None
    # The number of last blocks with the second path of CLIP Surgery; null for the toybox's own,
    # otherwise 6 as published.
    surgery_depth: int | None = Field(None, gt=0)
    # The sentences whose embeddings are averaged for a phrase, with {} in its place; null for the
    # toybox's own, otherwise the 85 of CLIP Surgery.
    templates: tuple[str, ...] | None = None


class SamConfig(_Config):
    """The frozen segmenter."""

    # "toybox" for the embedded SAM, or vit_b, vit_l, vit_h or mobile_sam.
    name: str = "toybox"
    # The path of a file, or "random" for tests of full-size nets.
    weights: str | None = Field(None, min_length=1)


class PointGeneratorConfig(_Config):
    """The trainable part. Its sizes give the paper's 20.7M parameters (our choice)."""

    # K, the number of queries.
    num_queries: int = Field(10, gt=0, le=1_000)
    # M, the number of points that each query generates.
    num_points: int = Field(8, gt=0, le=1_000)
    # The width of the queries.
    hidden_size: int = Field(512, gt=0, le=16_384)
    # The number of heads of each attention.
    num_heads: int = Field(8, gt=0)
    # The inner width of the feed-forward networks.
    ffn_size: int = Field(1824, gt=0, le=16_384)
    # The width in which image and text features are fused.
    fusion_size: int = Field(64, gt=0, le=16_384)
    # The inner width of the heads that predict points and scores.
    head_size: int = Field(256, gt=0, le=16_384)
    # The logit of r above which a point is prompted as foreground.
    positive_above: float = Field(1.9, allow_inf_nan=False)
    # The logit of r below which a point is prompted as background; in between it is left out.
    negative_below: float = Field(-3.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _heads_divide(self) -> PointGeneratorConfig:
        if self.hidden_size % self.num_heads or self.fusion_size % self.num_heads:
            raise ValueError(
                f"num_heads must divide hidden_size and fusion_size, got {self.num_heads} for "
                f"{self.hidden_size} and {self.fusion_size}"
            )
        return self

    @model_validator(mode="after")
    def _labels_exclude_each_other(self) -> PointGeneratorConfig:
        if self.negative_below > self.positive_above:
            raise ValueError(
                f"negative_below must not exceed positive_above, got {self.negative_below} and "
                f"{self.positive_above}"
            )
        return self


class Model(_Config):
    """The frozen encoders and the trainable point generator."""

    # The encoder of pictures and texts.
    clip: ClipConfig = ClipConfig()
    # The decoder that makes a mask of points, with its image encoder.
    sam: SamConfig = SamConfig()
    # What is trained: it generates the points from the features of CLIP.
    point_generator: PointGeneratorConfig = PointGeneratorConfig()


# ---------------------------------------------------------------- labels and synthesis


class PointRecipe(_Config):
    """The method that makes point prompts for SAM out of a similarity map."""

    # "surgery" is CLIP Surgery as published: the cells above the threshold are positive points, and
    # as many of the lowest cells are negative ones. "near" takes `num_positive` points spread over
    # the response and `num_negative` points of low similarity close to it (our choice).
    method: Literal["surgery", "near"] = "surgery"
    # The similarity, from 0 to 1, above which a cell belongs to the response.
    threshold: float = Field(0.8, gt=0, lt=1)
    # The number of positive points of "near".
    num_positive: int = Field(6, gt=0, le=1_000)
    # The number of negative points of "near".
    num_negative: int = Field(4, ge=0, le=1_000)


class Labels(_Config):
    """The pseudo labels (Sections 3.2 and 3.3)."""

    # The recipe for object-centric pictures (our choice: a recipe for each kind of picture).
    object_centric: PointRecipe = PointRecipe()
    # The recipe for referring pictures.
    referring: PointRecipe = PointRecipe()
    # What finds the noun phrases of an expression: the rules in ppt/labels, or spaCy if installed.
    chunker: Literal["rules", "spacy"] = "rules"
    # Candidates whose masks overlap by more than this IoU are one candidate (our choice).
    merge_iou: float = Field(0.8, gt=0, le=1)
    # The most instances of one phrase that become candidates; the paper has one.
    max_instances: int = Field(1, gt=0, le=1_000)
    # The least similarity of a further instance, as a share of the strongest (our choice).
    instance_threshold: float = Field(0.85, gt=0, le=1)
    # Which of several candidates is the referent before any Select: none (Section 3.3), or the one
    # that overlaps most with the mask of the whole expression (rows 2 and 6 of Table 3).
    unselected: Literal["none", "whole_expression"] = "none"


class Synthesis(_Config):
    """D_ref: pictures with relations that are made of the pictures of D_sem (Section 3.2)."""

    # The number of pictures that are made.
    num_pictures: int = Field(gt=0, le=1_000_000)
    # The share of pictures made by composition, as mosaics; fusion makes the others (our choice).
    composition: float = Field(0.5, ge=0, le=1)
    # The side in pixels of the square pictures (our choice).
    size: int = Field(448, gt=0, le=4_096)
    # The seed of D_ref. It is not the seed of the run, so that runs of several seeds share D_ref.
    seed: Seed = 0


class Select(_Config):
    """The settings of Select (Eq. 6 and 7), which chooses the referent among the candidates."""

    # Whether only what the first noun phrase names may be the referent (our choice: an addition to
    # the paper), so that "car left of the dog" is never the dog.
    head_phrase: bool = False


# ---------------------------------------------------------------- training


class MatchCost(_Config):
    """The weights of the terms in the cost of the Hungarian matching (our choice)."""

    # The L1 distance of the points.
    points: float = Field(5.0, ge=0)
    # The error of the labels of the points, foreground or background.
    point_labels: float = Field(1.0, ge=0)
    # The error of the referent score.
    referent: float = Field(5.0, ge=0)
    # The Dice loss of the mask. Above 0, the masks of all queries are decoded in each iteration.
    mask: float = Field(0.0, ge=0)


class LossWeights(_Config):
    """The weights of the terms of the loss, which Eq. 4 sums (our choice)."""

    # The binary cross-entropy of the mask.
    mask: float = Field(1.0, ge=0)
    # The Dice loss of the mask.
    dice: float = Field(1.0, ge=0)
    # The L1 distance of the points.
    points: float = Field(5.0, ge=0)
    # The binary cross-entropy of the labels of the points, foreground or background.
    point_labels: float = Field(1.0, ge=0)
    # The binary cross-entropy of the referent score.
    referent: float = Field(1.0, ge=0)
    # The weight, within the referent loss, of a query without a pseudo label, whose target is 0.
    unmatched: float = Field(0.1, ge=0)
    # The same losses after each level of the point generator but the last, as in DETR.
    aux: float = Field(0.0, ge=0)


class Training(_Config):
    """The settings of training that all stages share."""

    # The number of expressions in an iteration, over all workers (Section 4.1).
    global_batch_size: int = Field(64, gt=0, le=100_000)
    # The optimiser: Adam (Section 4.1), or Muon (our choice), which needs fewer iterations, each of
    # which takes longer, and a higher learning rate, for example 0.005.
    optimizer: Literal["adam", "muon"] = "adam"
    # The learning rate (Section 4.1).
    learning_rate: float = Field(1e-3, gt=0)
    # How the learning rate changes within a stage: not at all, or it rises in a short warm-up and
    # falls over the second half of the iterations (our choice).
    schedule: Literal["constant", "decay"] = "constant"
    # The norm to which gradients are clipped (our choice).
    max_norm: float = Field(1.0, gt=0)
    # The most masks that a worker decodes in an iteration; null for no limit.
    max_mask_prompts: int | None = Field(None, gt=0)
    # How queries are matched with pseudo labels.
    match_cost: MatchCost = MatchCost()
    # How the terms of the loss are weighted.
    loss_weights: LossWeights = LossWeights()


class Stage(_Config):
    """One stage of the curriculum: an optional Select, then training."""

    # The sources to train on, and how often a sample of each occurs in an epoch; 1 for each source
    # is the union in Eq. 5 to 7.
    sources: dict[SourceName, Annotated[float, Field(gt=0, le=1_000)]] = Field(min_length=1)
    # The number of epochs in each round.
    num_epochs: int = Field(gt=0, le=10_000)
    # How the stage trains: a name in ppt/config/stage_kinds.py.
    kind: str = "standard"
    # Whether Select chooses the referents anew before each round, with the model as it is then.
    select: bool = False
    # How often Select and training are repeated (Eq. 7).
    rounds: int = Field(1, gt=0, le=1_000)
    # The learning rate of this stage; null for training.learning_rate.
    learning_rate: float | None = Field(None, gt=0)

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind not in STAGE_KINDS:
            hint = near(kind, STAGE_KINDS)
            raise ValueError(f"must be one of {', '.join(STAGE_KINDS)}, got {shown(kind)}{hint}")
        return kind


# ---------------------------------------------------------------- where it runs


Processes = Annotated[int, Field(ge=1, le=1_000)]


class Resources(_Config):
    """The resources that a run asks of Ray.

    The digests depend on none of these keys but `num_workers`, which determines the order of sums.
    The number of threads, from `cpus_per_worker` and `cpus_per_actor`, changes only last bits.
    """

    # The number of workers that train; [fewest, most] trains with as many as the cluster has.
    num_workers: Processes | tuple[Processes, Processes] = 1
    # The CPUs of each worker, which computes with a thread for each of them: 1.2 give two.
    cpus_per_worker: float = Field(1.0, gt=0)
    # The GPUs of each worker; 0 trains on CPUs.
    gpus_per_worker: float = Field(0.0, ge=0)
    # The number of tasks that read for each worker at the same time.
    readers_per_worker: int = Field(1, gt=0, le=100)
    # The CPUs of each of these tasks.
    cpus_per_reader: float = Field(1.0, ge=0)
    # The megabytes of batches that are read ahead for each worker.
    reader_memory: int = Field(1_000, gt=0)
    # The number of actors that carry out every step but training; [fewest, most] takes as many as
    # the cluster has room for.
    num_actors: Processes | tuple[Processes, Processes] = 1
    # The CPUs of each actor.
    cpus_per_actor: float = Field(1.0, gt=0)
    # The GPUs of each actor, which may be a share of one.
    gpus_per_actor: float = Field(0.0, ge=0)
    # How often a training starts again after a worker was lost.
    max_failures: int = Field(2, ge=0)

    @field_validator("num_workers", "num_actors", mode="wrap")
    @classmethod
    def _some(cls, value: Any, read: Callable[[Any], Any]) -> Any:
        wrong = f"must be a number from 1 to 1000 or [fewest, most], got {shown(value)}"
        if isinstance(value, bool):
            raise ValueError(wrong)
        try:
            number = read(value)
        except ValidationError:
            raise ValueError(wrong) from None
        if isinstance(number, tuple) and number[0] > number[1]:
            raise ValueError(wrong)
        return number

    @property
    def fewest_workers(self) -> int:
        """The number of workers with which a training can start."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """The number of workers that a training never exceeds."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def fewest_actors(self) -> int:
        """The number of actors with which a step can start."""
        return self.num_actors if isinstance(self.num_actors, int) else self.num_actors[0]

    @property
    def most_actors(self) -> int:
        """The number of actors that a step never exceeds."""
        return self.num_actors if isinstance(self.num_actors, int) else self.num_actors[1]


ModelSelection = Literal["last", "pseudo_iou", "truth"]
"""The stage whose checkpoint is the model of a run: the last one; the one that agrees best with the
pseudo labels of `data.validation`; or the best one on the masks of `data.validation`, which is not
weakly supervised."""


class Curriculum(_Config):
    """The configuration of one run."""

    # The name of the run and of its folder; by default that of the curriculum's file.
    name: RunName
    # The seed of the point generator and of the order of the samples.
    seed: Seed = 0
    # The folder or fsspec URL for tables, checkpoints and runs.
    store: StorePath = "runs"
    # The number of files that each table is split into.
    num_buckets: int = Field(16, gt=0, le=10_000)
    # The data sets.
    data: Data
    # The frozen encoders and the point generator.
    model: Model = Model()
    # How pseudo labels are made.
    labels: Labels = Labels()
    # How D_ref is made.
    synthesis: Synthesis
    # How Select chooses.
    select: Select = Select()
    # What all stages have in common.
    training: Training = Training()
    # The stages by name, in their order. Without a stage only the baselines are measured.
    stages: dict[StageName, Stage]
    # Which stage's checkpoint is the model of the run (our choice).
    model_selection: ModelSelection = "last"
    # The side in pixels of the pictures from which `clip_sam_published` makes its similarity maps,
    # 512 in CLIP Surgery's own demonstration; null for the size of `model.clip`.
    published_image_size: int | None = Field(None, gt=0, le=4_096)
    # What is asked of Ray.
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _stages_can_run(self) -> Curriculum:
        wrong = []
        batch, workers = self.training.global_batch_size, self.resources.most_workers
        if batch < workers:
            wrong.append(
                f"training.global_batch_size must be >= resources.num_workers ({workers}), "
                f"got {batch}"
            )
        first = next(iter(self.stages), None)
        if first is not None and self.stages[first].select:
            wrong.append(
                f"stages.{first}.select must be false: Select needs the model of a stage before"
            )
        files: dict[str, str] = {}
        for name in self.stages:
            other = files.setdefault(name.lower(), name)
            if other != name:
                wrong.append(f"stages.{name} and stages.{other} would be one file on some systems")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

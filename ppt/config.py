"""The configuration of a run: one YAML file is one `Curriculum`.

Typed and validated; an unknown key, a wrong type or a value out of range is a `ConfigError` that
names the field and the value. `load_curriculum` reads the YAML and applies overrides such as
`stages.semantic_alignment.num_epochs=2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

SourceName = Literal["d_sem", "d_ref", "h_sem", "h_ref"]
"""The four training sources (paper, Section 3.3)."""

SOURCES: tuple[SourceName, ...] = get_args(SourceName)


class ConfigError(ValueError):
    """The user's configuration is wrong; the message names the field and the value."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ---------------------------------------------------------------- data


class ReferData(_Config):
    """A REFER data set on disk: RefCOCO, RefCOCO+, RefCOCOg or one's own in that layout."""

    format: Literal["refer"]
    root: Path
    dataset: str = "refcoco"
    split_by: str = "unc"
    split: str | tuple[str, ...] = "train"


class TableData(_Config):
    """One's own pictures and expressions: a CSV or JSON Lines table, see docs/data.md."""

    format: Literal["table"]
    path: Path


class ToyboxScenes(_Config):
    """Scenes with expressions from the embedded world."""

    format: Literal["toybox_scenes"]
    num_pictures: int = Field(gt=0)
    seed: int
    min_objects: int = Field(3, ge=1)
    max_objects: int = Field(5, ge=1)


class ImageFolderData(_Config):
    """Object-centric pictures in folders: ImageNet's layout or one folder for each class."""

    format: Literal["imagenet"]
    root: Path
    max_pictures: int | None = Field(None, gt=0)  # seeded choice; the paper takes 2,836
    seed: int = 0


class MiniImageNetData(_Config):
    """Object-centric pictures of mini-ImageNet, by Ravi and Larochelle's train, val, test.csv.

    All three splits unless told otherwise (our choice: the paper names none, and their classes are
    kept apart for few-shot learning, which nobody does here).
    """

    format: Literal["mini_imagenet"]
    root: Path
    split: str | tuple[str, ...] = ("train", "val", "test")
    max_pictures: int | None = Field(None, gt=0)  # seeded choice; the paper takes 2,836
    seed: int = 0


class ToyboxObjects(_Config):
    """Object-centric pictures from the embedded world."""

    format: Literal["toybox_objects"]
    num_pictures: int = Field(gt=0)
    seed: int


ReferringData = Annotated[ReferData | TableData | ToyboxScenes, Field(discriminator="format")]
ObjectCentricData = Annotated[
    ImageFolderData | MiniImageNetData | ToyboxObjects, Field(discriminator="format")
]


class Data(_Config):
    """What goes in. `validation` is for choices; `evaluation` is only ever measured on."""

    referring: ReferringData
    object_centric: ObjectCentricData
    validation: ReferringData
    evaluation: ReferringData


# ---------------------------------------------------------------- models


class ClipConfig(_Config):
    """The frozen CLIP. `toybox` is the embedded one; other names are open_clip's plain ViTs."""

    name: str = "toybox"
    weights: str | None = None  # a path or one of open_clip's tags; "random" for tests
    image_size: int | None = Field(None, gt=0)  # None: the model's own
    taps: tuple[int, ...] | None = None  # blocks, from 1; None: the toybox's own or thirds
    surgery_depth: int | None = Field(None, gt=0)  # None: the toybox's own or 6 (CLIP Surgery)
    templates: tuple[str, ...] | None = None  # None: the toybox's own or CLIP Surgery's 85


class SamConfig(_Config):
    """The frozen SAM. `toybox` is the embedded one; otherwise vit_b, vit_l, vit_h."""

    name: str = "toybox"
    weights: str | None = None  # a path; "random" for tests of full-size nets


class PointGeneratorConfig(_Config):
    """The trainable part. The paper gives no sizes: these land on its 20.7M (our choice)."""

    num_queries: int = Field(10, gt=0)  # K
    num_points: int = Field(8, gt=0)  # M
    hidden_size: int = Field(512, gt=0)
    num_heads: int = Field(8, gt=0)
    ffn_size: int = Field(2048, gt=0)
    fusion_size: int = Field(64, gt=0)
    head_size: int = Field(256, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> PointGeneratorConfig:
        if self.hidden_size % self.num_heads or self.fusion_size % self.num_heads:
            raise ValueError(
                f"num_heads must divide hidden_size and fusion_size, got {self.num_heads} for "
                f"{self.hidden_size} and {self.fusion_size}"
            )
        return self


class Model(_Config):
    clip: ClipConfig = ClipConfig()
    sam: SamConfig = SamConfig()
    point_generator: PointGeneratorConfig = PointGeneratorConfig()


# ---------------------------------------------------------------- labels and synthesis


class PointRecipe(_Config):
    """How a similarity map becomes point prompts for SAM.

    `surgery` is CLIP Surgery as published: as many of the highest cells as pass the threshold are
    positive, the same number of the lowest cells anywhere are negative. `near` takes
    `num_positive` points of the response and `num_negative` low ones close around it (our choice).
    """

    method: Literal["surgery", "near"] = "surgery"
    threshold: float = Field(0.8, gt=0, lt=1)
    num_positive: int = Field(6, gt=0)  # `near` only
    num_negative: int = Field(4, ge=0)  # `near` only


class Labels(_Config):
    """Pseudo labels (Section 3.2 and 3.3): a recipe for each kind of picture (our choice)."""

    object_centric: PointRecipe = PointRecipe()
    referring: PointRecipe = PointRecipe()
    chunker: Literal["rules", "spacy"] = "rules"
    merge_iou: float = Field(0.8, gt=0, le=1)  # candidates whose masks nearly coincide are one
    # Instances of a phrase that become candidates of their own; the paper has one. A further one
    # must answer with at least this share of the strongest response.
    max_instances: int = Field(1, gt=0)
    instance_threshold: float = Field(0.85, gt=0, le=1)
    # Which of several candidates is the referent before any Select: none, as Section 3.3 has it,
    # or the one that the whole expression's own mask overlaps most. Section 3.2 tells why that is
    # a poor label; curricula without Select have no better one (rows 2 and 6 of Table 3).
    unselected: Literal["none", "whole_expression"] = "none"


class Synthesis(_Config):
    """D_ref: relation-augmented pictures made of D_sem's (Section 3.2)."""

    num_pictures: int = Field(gt=0)
    composition: float = Field(0.5, ge=0, le=1)  # share of mosaics; the rest is fusion
    size: int = Field(448, gt=0)  # side of the square picture made, pixels


class Select(_Config):
    """Select of Eq. 6 and 7: which candidate is the referent (our choice: by score and overlap).

    `head_phrase`: only what the expression's first phrase names may be the referent, so "car left
    of the dog" is never the dog (our addition; the paper lets every candidate be it).
    """

    head_phrase: bool = False
    min_confidence: float = Field(0.0, ge=0, le=1)  # below: left out until the next Select


# ---------------------------------------------------------------- training


class MatchCost(_Config):
    """What the Hungarian matching weighs (our choice: the paper does not say)."""

    points: float = Field(5.0, ge=0)
    point_labels: float = Field(1.0, ge=0)
    referent: float = Field(5.0, ge=0)  # lower, and queries tile the picture before they choose
    mask: float = Field(0.0, ge=0)  # above 0 all K queries are decoded


class LossWeights(_Config):
    """Eq. 4 sums its terms; these weights are our choice, as DETR's are its own."""

    mask: float = Field(1.0, ge=0)
    dice: float = Field(1.0, ge=0)
    points: float = Field(5.0, ge=0)
    point_labels: float = Field(1.0, ge=0)
    referent: float = Field(1.0, ge=0)
    unmatched: float = Field(0.1, ge=0)  # score target 0 for queries without a pseudo label
    aux: float = Field(0.0, ge=0)  # the same losses for the stages before the last, as DETR


class Training(_Config):
    """What all stages share. Adam, batch 64, learning rate 0.001: Section 4.1."""

    global_batch_size: int = Field(64, gt=0)  # expressions a step, over all workers
    learning_rate: float = Field(1e-3, gt=0)
    # Within a stage: as it is, or a short rise and over the second half a fall (our choice).
    schedule: Literal["constant", "decay"] = "constant"
    max_norm: float = Field(1.0, gt=0)  # gradient clipping (our choice)
    max_mask_prompts: int | None = Field(None, gt=0)  # cap on decoded prompts a step and worker
    match_cost: MatchCost = MatchCost()
    loss_weights: LossWeights = LossWeights()


class Stage(_Config):
    """One stage: train on `sources` for `num_epochs`, after an optional Select.

    `sources` gives each source its weight: how often a sample comes in one epoch (1 = once, which
    is the union of Eq. 5 to 7). `rounds` repeats Select and training (Eq. 7).
    """

    sources: dict[SourceName, float] = Field(min_length=1)
    num_epochs: int = Field(gt=0)
    select: bool = False
    rounds: int = Field(1, gt=0)
    learning_rate: float | None = Field(None, gt=0)  # None: training.learning_rate

    @model_validator(mode="after")
    def _weights_positive(self) -> Stage:
        for source, weight in self.sources.items():
            if weight <= 0:
                raise ValueError(f"sources.{source} must be > 0, got {weight}")
        return self


# ---------------------------------------------------------------- where it runs


class Resources(_Config):
    """What Ray is asked for. Not part of any digest but `num_workers`, which orders the sums."""

    # Ray Train workers; [fewest, most] trains on as many as the cluster has at the time (elastic).
    num_workers: int | tuple[int, int] = 1
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    cpus_per_reader: float = Field(1.0, ge=0)  # a Ray Data task that fetches rows for a worker
    num_actors: int = Field(1, gt=0)  # encode, label, Select, evaluate
    cpus_per_actor: float = Field(1.0, gt=0)
    gpus_per_actor: float = Field(0.0, ge=0)
    max_failures: int = Field(2, ge=0)  # restarts of a training run after a lost worker

    @field_validator("num_workers", mode="before")
    @classmethod
    def _some_workers(cls, value: Any) -> Any:
        numbers = list(value) if isinstance(value, (list, tuple)) else [value, value]
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        if not whole or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
            raise ValueError(f"must be a number from 1 or [fewest, most], got {value!r}")
        return value

    @property
    def fewest_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


ModelSelection = Literal["last", "pseudo_iou", "truth"]
"""Which stage's checkpoint is the run's model: the last; the one that agrees best with the
validation split's pseudo labels; the best on that split's ground truth, which is not weakly
supervised any more."""


class Curriculum(_Config):
    """Everything a run is made of."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    seed: int = 0
    store: str = "runs"  # folder or fsspec URL
    num_buckets: int = Field(16, gt=0)
    data: Data
    model: Model = Model()
    labels: Labels = Labels()
    synthesis: Synthesis
    select: Select = Select()
    training: Training = Training()
    stages: dict[str, Stage]  # none: CLIP + SAM is measured, nothing is trained
    model_selection: ModelSelection = "last"  # our choice: the paper does not say
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _stages_can_run(self) -> Curriculum:
        batch, workers = self.training.global_batch_size, self.resources.most_workers
        if batch < workers:
            raise ValueError(
                f"training.global_batch_size must be >= resources.num_workers ({workers}), "
                f"got {batch}"
            )
        first = next(iter(self.stages), None)
        if first is not None and self.stages[first].select:
            raise ValueError(
                f"stages.{first}.select must be false: Select needs the model of a stage before"
            )
        return self


# ---------------------------------------------------------------- reading


def load_curriculum(path: str | Path, overrides: Sequence[str] = ()) -> Curriculum:
    """The curriculum of a YAML file with `key.path=value` overrides (values are YAML).

    A file with `base: OTHER.yaml`, a path from its own folder, says only what differs from that
    one: groups are merged key by key, `null` takes a key or a whole group away, and a group with
    another `format` replaces the base's. `name` is never inherited, for it names the run's folder.

    Raises `ConfigError` that names the file or the key.
    """
    tree = _read_tree(Path(path))
    for override in overrides:
        _apply(tree, override)
    return parse_curriculum(tree)


def load_row(
    path: str | Path, overrides: Sequence[str] = (), base: str | Path | None = None
) -> Curriculum:
    """The curriculum of an ablation's row: overrides change its `base`, what differs stays.

    So one override serves every row, whichever stages it takes away. An argument `base` stands in
    for the file's own. Raises `ConfigError` as `load_curriculum`.
    """
    path = Path(path)
    row = _read_file(path)
    own = _base_of(row, path)
    if own is None:
        raise ConfigError(f"{path}: a row says only what differs from its base: give it a base")
    tree = _inherited(Path(base) if base else own, (path,))
    for override in overrides:
        _apply(tree, override)
    return parse_curriculum(_merge(tree, row))


def _read_tree(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's keys merged over those of its bases; `below` are the files that led here."""
    if path.resolve() in (file.resolve() for file in below):
        circle = " -> ".join(str(file) for file in (*below, path))
        raise ConfigError(f"base goes in a circle: {circle}")
    tree = _read_file(path, below)
    base = _base_of(tree, path)
    return tree if base is None else _merge(_inherited(base, (*below, path)), tree)


def _inherited(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """A base's keys, without its name."""
    tree = _read_tree(path, below)
    tree.pop("name", None)
    return tree


def _base_of(tree: dict[str, Any], path: Path) -> Path | None:
    """Take `base` out of a file's keys; the path it means."""
    if "base" not in tree:
        return None
    base = tree.pop("base")
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base must be the path of a YAML file, got {base!r}")
    return path.parent / base


def _read_file(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's keys as they stand there."""
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        if below:
            raise ConfigError(f"{below[-1]}: base {str(path)!r} is no file") from None
        raise ConfigError(f"no curriculum at {str(path)!r}: give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, got {type(tree).__name__}")
    return tree


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, group by group; the base's keys keep their order."""
    merged = dict(base)
    for key, value in changes.items():
        inherited = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(inherited, dict) and _same(inherited, value):
            merged[key] = _merge(inherited, value)
        else:
            merged[key] = value
    return merged


def _same(base: dict[str, Any], changes: dict[str, Any]) -> bool:
    """Whether two groups have the same keys: those of another `format` mean something else."""
    return changes.get("format", base.get("format")) == base.get("format")


def parse_curriculum(tree: dict[str, Any]) -> Curriculum:
    """A `Curriculum` from plain data; raises `ConfigError` with one line for each wrong field."""
    try:
        return Curriculum.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must look like stages.NAME.num_epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from None
    *parents, leaf = key.split(".")
    match tree, parents:  # a new stage is given whole: stages.NAME={...}
        case {"stages": dict(stages)}, ["stages", stage, *_] if stage not in stages:
            known = ", ".join(stages) or "none"
            raise ConfigError(f"override {override!r}: no such stage; this curriculum has {known}")
    node = tree
    for i, parent in enumerate(parents):
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            here = ".".join(parents[: i + 1])
            raise ConfigError(f"override {override!r}: {here} is a value, not a group of keys")
        node = child
    node[leaf] = value


_UNION_TAGS = {"refer", "table", "toybox_scenes", "imagenet", "mini_imagenet", "toybox_objects"}


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"] if part not in _UNION_TAGS)
    value = error.get("input")
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {place!r} (value {value!r})"
        case "missing":
            return f"{place} is missing: set it in the YAML or give {place}=VALUE"
        case "value_error":
            return f"{place}: {error['ctx']['error']}"
        case "union_tag_invalid":
            context = error["ctx"]
            return f"{place}.format must be {context['expected_tags']}, got {context['tag']!r}"
    return f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}, got {value!r}"

"""Every step names what it makes by all that it depends on: no field can be forgotten by `spec`."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

import ppt
from ppt.batches.sampler import LabelTable
from ppt.config import (
    Labels,
    LossWeights,
    Model,
    PointRecipe,
    Resources,
    Select,
    Stage,
    Synthesis,
    Training,
)
from ppt.config.stage_kinds import STAGE_KINDS
from ppt.data.toybox import ToyboxScenes
from ppt.evaluation.protocols import Protocol
from ppt.experiments.benchmark.actor_scaling import ModelOfSelect
from ppt.models import build, loaded
from ppt.models.confidence import Calibration
from ppt.serving.predict_table import PredictRows, Row
from ppt.serving.stored_checkpoint import StoredCheckpoint
from ppt.steps.agree import AgreeWithLabels
from ppt.steps.calibrate import GatherEvidence
from ppt.steps.encode import EncodePhrases, EncodePictures, EncodeSurgeryTokens, EncodeWords
from ppt.steps.evaluate import EvaluateCheckpoint, EvaluateRecipe, EvaluationSplit
from ppt.steps.label import LabelObjectCentric, LabelReferring
from ppt.steps.label_quality import MeasureLabels
from ppt.steps.prepare import PrepareGroundTruth, PrepareSamples
from ppt.steps.select import SelectReferents
from ppt.steps.step import Step
from ppt.steps.synthesise import Synthesise
from ppt.steps.whole_expression import ReferByWholeExpression
from ppt.store.nodes import Node, Store, digest_of
from ppt.training import stage as training_stage
from ppt.training.loop import StageWorker
from ppt.training.stage import StageTraining

STORE = Store("memory://steps")


def node(name: str) -> Node:
    return STORE.node(name, {}, buckets=2)


SAMPLES, FEATURES, TOKENS, WORDS, PHRASES, LABELS, TRUTH, CHECKPOINT, EVIDENCE, RESULTS = map(
    node,
    (
        *("samples", "features", "features", "words", "phrases"),
        *("labels", "ground_truth", "checkpoints", "evidence", "results"),
    ),
)
MODEL = Model()
SCENES = ToyboxScenes(format="toybox_scenes", num_pictures=4, seed=1)
NEAR = PointRecipe(method="near")
PROTOCOL = Protocol("peers", True, (480, 480), 0.35)
TABLE = LabelTable(LABELS, FEATURES, WORDS)
SPLIT = EvaluationSplit(SAMPLES, FEATURES, WORDS, PHRASES, TRUTH)

EXAMPLES: list[Step] = [
    PrepareSamples(SCENES, 2, "referring"),
    PrepareGroundTruth(SCENES, SAMPLES, "evaluation"),
    EncodePictures(SAMPLES, MODEL, "referring"),
    EncodeSurgeryTokens(SAMPLES, MODEL.clip, "evaluation"),
    EncodeWords.of(["a car", "a dog"], MODEL.clip, 2, "referring"),
    EncodePhrases.of(["a car", "a dog"], MODEL.clip, 2, "referring"),
    LabelObjectCentric(SAMPLES, FEATURES, PHRASES, MODEL, NEAR, "d_sem"),
    LabelReferring(SAMPLES, FEATURES, PHRASES, MODEL, NEAR, "h", Labels(max_instances=3)),
    ReferByWholeExpression(LABELS, FEATURES, PHRASES, MODEL, NEAR),
    Synthesise(SAMPLES, LABELS, MODEL.sam, Synthesis(num_pictures=4)),
    SelectReferents(TABLE, CHECKPOINT, MODEL, Select(), 1),
    ModelOfSelect(TABLE, CHECKPOINT, MODEL, Select(), 1),
    GatherEvidence(
        SAMPLES, FEATURES, WORDS, PHRASES, LABELS, CHECKPOINT, MODEL, "ris_joint on validation"
    ),
    EvaluateCheckpoint(SPLIT, MODEL, PROTOCOL, "ris_joint", CHECKPOINT, EVIDENCE),
    EvaluateRecipe(SPLIT, MODEL, PROTOCOL, "clip_sam_published", NEAR, TOKENS),
    AgreeWithLabels(TABLE, CHECKPOINT, MODEL, "ris_joint on validation"),
    MeasureLabels(LABELS, TRUTH),
    PredictRows(
        StoredCheckpoint(
            Path("runs/a"),
            "0123",
            MODEL,
            {"clip": "a", "sam": "b"},
            Calibration((1.0, 2.0, 3.0), -1.0),
        ),
        ((Row(1, "a.png", "a car", Path("a.png")),), (Row(2, "b.png", "a dog", Path("b.png")),)),
        "pictures.csv",
    ),
]
STAGE = StageTraining(
    name="ris_joint",
    stage=Stage(sources={"h_sem": 1, "h_ref": 1}, num_epochs=2),
    training=Training(max_mask_prompts=4, loss_weights=LossWeights(aux=1)),
    model=MODEL,
    tables=(TABLE,),
    initial=CHECKPOINT,
    seed=0,
    resources=Resources(),
)

FOR_PEOPLE = {"name", "round"}
"""Fields of steps that only progress bars show."""

OF_PHRASES = "the phrases were encoded with these templates"
OF_CHECKPOINT = "the checkpoint was trained with this model"
OF_FEATURES = "the features were made with these encoders"
NOT_COVERED = {
    LabelObjectCentric: {
        "model.clip.templates": OF_PHRASES,
        "model.point_generator": "labels need none",
    },
    LabelReferring: {
        "model.clip.templates": OF_PHRASES,
        "model.point_generator": "labels need none",
        "labels.object_centric": "is of the other step",
        "labels.referring": "is the field `recipe`",
        "labels.unselected": "is a step of its own",
    },
    ReferByWholeExpression: {
        "model.clip.templates": OF_PHRASES,
        "model.point_generator": "labels need none",
    },
    EncodePictures: {
        "model.clip.templates": "are of texts",
        "model.point_generator": "features need none",
    },
    EncodeSurgeryTokens: {"clip.templates": "are of texts"},
    EncodeWords: {"clip.templates": "phrases alone are put into them"},
    **dict.fromkeys(
        (SelectReferents, ModelOfSelect),
        {
            "before.table": "the labels of H are the only table of their node",
            "model": OF_CHECKPOINT,
        },
    ),
    GatherEvidence: {"model": OF_CHECKPOINT},
    EvaluateCheckpoint: {"model": OF_CHECKPOINT},
    EvaluateRecipe: {
        "split.words": "a baseline reads none",
        "model.clip.templates": OF_PHRASES,
        "model.clip.name": OF_FEATURES,
        "model.clip.weights": OF_FEATURES,
        "model.clip.image_size": OF_FEATURES,
        "model.clip.taps": OF_FEATURES,
        "model.clip.surgery_depth": OF_FEATURES,
        "model.sam": OF_FEATURES,
        "model.point_generator": "a baseline has none",
    },
    AgreeWithLabels: {
        "labels.table": "as of Select",
        "model": OF_CHECKPOINT,
    },
    PredictRows: {
        "model.folder": "the digest names it",
        "model.model": "the digest names it",
        "model.encoders": "the digest names it",
    },
    StageTraining: {
        "stage.select": "the labels are covered",
        "stage.rounds": "each round has a name of its own",
        "tables.0.table": "a node's labels are in one table, and the node is covered",
        "model.clip.templates": "features need none",
        **{
            f"resources.{name}": "decides how fast, not what"
            for name in Resources.model_fields
            if name != "num_workers"
        },
    },
}
"""By step, the fields that may change without another digest, and why."""

OTHER: dict[str, Any] = {  # other values that a field may have, where any will not do
    "taps": (1, 4),
    "image_size": 64,
    "surgery_depth": 2,
    "templates": ("the {}",),
    "chunker": "spacy",
    "learning_rate": 0.5,
    "kind": "another",
    "weights": "a.pt",
    "fault": "no such file",
    "initial": None,
    "max_mask_prompts": 9,
}


def others(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(path of a field, `value` with another value there) for every field at any depth."""
    if isinstance(value, Node):
        yield "", STORE.node(value.kind, {"another": True}, buckets=value.num_buckets)
    elif isinstance(value, BaseModel):
        for field in type(value).model_fields:
            for path, other in others(getattr(value, field), field):
                yield f".{field}{path}", value.model_copy(update={field: other})
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            for path, other in others(getattr(value, f.name), f.name):
                yield f".{f.name}{path}", replace(value, **{f.name: other})
    elif isinstance(value, tuple) and value and not isinstance(value[0], (str, int)):
        for i, item in enumerate(value):
            for path, other in others(item, name):
                yield f".{i}{path}", (*value[:i], other, *value[i + 1 :])
    elif name in OTHER and OTHER[name] != value:
        yield "", OTHER[name]
    elif isinstance(value, bool):
        yield "", not value
    elif isinstance(value, int):
        yield "", value + 1
    elif isinstance(value, float):
        yield "", value + 0.1
    elif isinstance(value, Path):
        yield "", value / "elsewhere"
    elif isinstance(value, str):
        yield "", f"{value}2"
    elif isinstance(value, tuple):
        yield "", (*value, value[-1])
    elif isinstance(value, dict):
        yield "", {**value, next(iter(value)): "another"}
    else:
        raise TypeError(f"{name}: what else may {value!r} be?")


@pytest.fixture(autouse=True)
def nets_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets that nobody has are told apart by their names alone; there are two kinds of stages."""
    monkeypatch.setitem(STAGE_KINDS, "another", STAGE_KINDS["standard"])

    def known(builder: Any) -> Any:
        def fingerprinted(config: Any) -> Any:
            try:
                return builder(config)
            except ValueError:
                return SimpleNamespace(fingerprint=digest_of(config.model_dump()))

        return fingerprinted

    for name in ("build_image_text_encoder", "build_segmenter"):
        monkeypatch.setattr(build, name, known(getattr(build, name)))
    for cached in (loaded.clip_fingerprint, loaded.sam_fingerprint):
        monkeypatch.setattr(loaded, cached.__name__, cached)
        cached.cache_clear()
    yield
    for cached in (loaded.clip_fingerprint, loaded.sam_fingerprint):
        cached.cache_clear()


def concrete(step: type[Step]) -> Iterator[type[Step]]:
    for below in step.__subclasses__():
        yield from concrete(below)
    if not step.__abstractmethods__ and step.__module__.startswith("ppt."):
        yield step


def test_there_is_an_example_of_every_step() -> None:
    for module in pkgutil.walk_packages(ppt.__path__, "ppt."):
        importlib.import_module(module.name)
    assert {type(step) for step in EXAMPLES} == set(concrete(Step))


@pytest.mark.parametrize("made", [*EXAMPLES, STAGE], ids=lambda made: type(made).__name__)
def test_a_changed_field_is_another_digest(made: Step | StageTraining) -> None:
    digest, expected = made.node(STORE).digest, NOT_COVERED.get(type(made), {})
    covered, not_covered = set(), set()
    for path, other in others(made, ""):
        path = path.removeprefix(".")
        if path in FOR_PEOPLE and isinstance(made, Step):
            assert other.node(STORE).digest == digest, path
        elif other.node(STORE).digest == digest:
            fields = [field for field in expected if f"{path}.".startswith(f"{field}.")]
            assert fields, f"{path} is forgotten by spec() and parents()"
            not_covered |= set(fields)
        else:
            covered.add(path)
    assert covered
    assert not_covered == expected.keys()  # nothing is excused in vain


@pytest.mark.parametrize("step", EXAMPLES, ids=lambda step: type(step).__name__)
def test_a_raised_version_is_another_digest(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = step.node(STORE).digest
    monkeypatch.setattr(type(step), "version", step.version + 1)
    assert step.node(STORE).digest != digest


def test_a_raised_version_of_the_training_is_another_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = STAGE.node(STORE).digest
    monkeypatch.setattr(training_stage, "VERSION", training_stage.VERSION + 1)
    raised = STAGE.node(STORE).digest
    assert raised != digest
    monkeypatch.setattr(StageWorker, "version", StageWorker.version + 1)  # that of the kind
    assert STAGE.node(STORE).digest not in (raised, digest)


def test_texts_in_any_order_are_one_step() -> None:
    steps = [
        EncodeWords.of(texts, MODEL.clip, 2, "h")
        for texts in (["a car", "a dog"], ["a dog", "a car", "a dog"])
    ]
    assert steps[0].node(STORE).digest == steps[1].node(STORE).digest
    assert EncodeWords.of(["a dog", "a car"], MODEL.clip, 3, "h").node(STORE).digest not in {
        step.node(STORE).digest for step in steps
    }


def with_texts(value: Any, encoded: Node) -> Any:
    """A step or a training that looks up its texts in `encoded` instead of its own table."""
    if isinstance(value, Node):
        return encoded if value.kind == encoded.kind else value
    if isinstance(value, tuple):
        return tuple(with_texts(item, encoded) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return replace(value, **{n: with_texts(field, encoded) for n, field in fields.items()})
    return value


READERS = {
    EncodeWords: {
        *(SelectReferents, ModelOfSelect, GatherEvidence, EvaluateCheckpoint, AgreeWithLabels),
        StageTraining,
    },
    EncodePhrases: {
        *(LabelObjectCentric, LabelReferring, ReferByWholeExpression),
        *(GatherEvidence, EvaluateCheckpoint, EvaluateRecipe),
    },
}
"""By the step that encodes texts, all that looks its texts up."""


@pytest.mark.parametrize("step", READERS, ids=lambda step: step.__name__)
def test_how_texts_are_encoded_is_part_of_the_digest_of_all_that_reads_them(
    step: type[EncodeWords | EncodePhrases], monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests(*texts: str, buckets: int = 2) -> dict[type, str]:
        encoded = step.of(texts, MODEL.clip, buckets, "h").node(STORE)
        return {
            type(made): with_texts(made, encoded).node(STORE).digest for made in [*EXAMPLES, STAGE]
        }

    before = digests("a car")
    assert digests("a car", "a dog", buckets=3) == before  # the other texts do not matter
    monkeypatch.setattr(step, "version", step.version + 1)
    after = digests("a car")
    changed = {made for made, digest in after.items() if digest != before[made]}
    assert changed == {step, *READERS[step]}

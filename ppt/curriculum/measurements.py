"""Evaluate: measure baselines and trained stages on a split, and choose the model of the run."""

from __future__ import annotations

from ppt.config import PointRecipe
from ppt.curriculum.choice import choose_stage
from ppt.curriculum.inputs import label_referring, label_table, published_clip, split_of
from ppt.curriculum.stages import TrainedStage
from ppt.evaluation.protocols import OURS
from ppt.labels.points import PUBLISHED_RECIPE
from ppt.steps.agree import AgreeWithLabels
from ppt.steps.calibrate import GatherEvidence, calibration_of, mismatched_scores
from ppt.steps.encode import EncodeSurgeryTokens
from ppt.steps.evaluate import EvaluateCheckpoint, EvaluateRecipe, diagnosis_of, metrics_of
from ppt.steps.runner import Runner
from ppt.store.nodes import Node
from ppt.tracking.record import BaselineRecord, Chosen, DataName, RunRecord, StageRecord

BASELINES = ("clip_sam_published", "clip_sam_best")
"""The names of the baselines."""

RECIPES = (
    PUBLISHED_RECIPE,
    *(
        PointRecipe(method="near", threshold=t, num_positive=p, num_negative=n)
        for t in (0.7, 0.8, 0.9)
        for p, n in ((1, 0), (4, 0), (6, 4))
    ),
)
"""The recipes among which the best one for CLIP + SAM is chosen on validation (our choice)."""


def measure_baselines(runner: Runner, record: RunRecord) -> None:
    """Measure CLIP + SAM with the published recipe and with the best one.

    The best recipe is the one with the highest mIoU on the validation split's ground truth. All
    similarity maps are made at the image size of `model.clip`, but those of the published baseline
    at `published_image_size`, if it is set.
    """
    model = record.curriculum.model
    validation = split_of(record, "validation")
    scores = [
        metrics_of(runner.run(EvaluateRecipe(validation, model, OURS, f"recipe {number}", recipe)))[
            "mIoU"
        ]
        for number, recipe in enumerate(RECIPES, 1)
    ]
    best = RECIPES[scores.index(max(scores))]
    split = split_of(record, record.split)
    clip = published_clip(record.curriculum)
    tokens = runner.run(EncodeSurgeryTokens(split.samples, clip, record.split)) if clip else None
    measured = ((PUBLISHED_RECIPE, tokens), (best, None))
    for name, (recipe, own_tokens) in zip(BASELINES, measured, strict=True):
        step = EvaluateRecipe(split, model, record.protocol, name, recipe, own_tokens)
        results = runner.run(step)
        record.baselines[name] = BaselineRecord(recipe, results, metrics_of(results))


def measure_stage(runner: Runner, record: RunRecord, trained: TrainedStage) -> StageRecord:
    """Measure a trained stage on the record's split, and add the result to the record."""
    training, checkpoint = trained.training, trained.checkpoint
    split, model = split_of(record, record.split), record.curriculum.model
    evidence = _evidence(runner, record, "validation", checkpoint, training.name, labelled=True)
    results = runner.run(
        EvaluateCheckpoint(split, model, record.protocol, training.name, checkpoint, evidence)
    )
    calibration = calibration_of(evidence)
    mismatched = _evidence(runner, record, record.split, checkpoint, training.name, labelled=False)
    manifest = checkpoint.manifest()
    stage = StageRecord(
        name=training.name,
        stage=trained.stage,
        checkpoint=checkpoint,
        results=results,
        metrics=metrics_of(results),
        diagnosis=diagnosis_of(results, mismatched_scores(mismatched, calibration)),
        evidence=evidence,
        mismatched=mismatched,
        calibration=calibration,
        history=manifest["history"],
        num_epochs=training.stage.num_epochs,
        seconds=manifest["seconds"],
        selected=trained.selected,
    )
    record.stages.append(stage)
    return stage


def _evidence(
    runner: Runner,
    record: RunRecord,
    data: DataName,
    checkpoint: Node,
    name: str,
    *,
    labelled: bool,
) -> Node:
    """Gather the evidence of a stage on sentences of other pictures and, if wanted, on labels."""
    tables = record.data[data]
    if labelled and not tables.has("labels"):
        label_referring(runner, record, data, data)
    return runner.run(
        GatherEvidence(
            tables.samples,
            tables.features,
            tables.words,
            tables.phrases,
            tables.labels if labelled else None,
            checkpoint,
            record.curriculum.model,
            f"{name} on {data}",
        )
    )


def choose_model(runner: Runner, record: RunRecord) -> Chosen:
    """Choose the model of the run among the stages that are measured so far.

    The choice is also written into the record. Stages that an earlier call has scored keep their
    scores and are not measured again.
    """
    by = record.curriculum.model_selection
    scores = dict(record.chosen.scores) if record.chosen else {}
    if by != "last":
        for stage in record.stages:
            if stage.name not in scores:
                stage.on_validation = _on_validation(runner, record, stage)
                scores[stage.name] = metrics_of(stage.on_validation)["mIoU"]
    record.chosen = choose_stage(by, [stage.name for stage in record.stages], scores)
    return record.chosen


def _on_validation(runner: Runner, record: RunRecord, stage: StageRecord) -> Node:
    """Measure a stage on the validation split, against its ground truth or its pseudo labels."""
    model, name = record.curriculum.model, f"{stage.name} on validation"
    if record.curriculum.model_selection == "truth":
        split = split_of(record, "validation")
        return runner.run(
            EvaluateCheckpoint(split, model, OURS, name, stage.checkpoint, stage.evidence)
        )
    labels = label_table(record, "validation")
    return runner.run(AgreeWithLabels(labels, stage.checkpoint, model, name))

"""Prepare, encode, label, synthesise: from data sets to the tables of training and measuring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.markup import escape

from ppt.batches.sampler import LabelTable, check_counts
from ppt.config import ClipConfig, ConfigError, Curriculum
from ppt.data.source import check_data_sets, open_source
from ppt.models.build import outline_image_text_encoder
from ppt.models.loaded import encoder_fingerprints
from ppt.steps.encode import EncodePhrases, EncodePictures, EncodeWords
from ppt.steps.evaluate import EvaluationSplit
from ppt.steps.label import (
    LabelObjectCentric,
    LabelReferring,
    Phrase,
    class_phrases,
    noun_phrases_of,
)
from ppt.steps.prepare import PrepareGroundTruth, PrepareSamples, require_some
from ppt.steps.progress import console
from ppt.steps.runner import Runner
from ppt.steps.synthesise import Synthesise
from ppt.steps.whole_expression import ReferByWholeExpression
from ppt.store.nodes import LABELS, Store
from ppt.tracking.record import DataName, RunRecord

TRAINING_DATA: tuple[DataName, ...] = ("referring", "object_centric")
SPLITS: tuple[DataName, ...] = ("validation", "evaluation")
DATA = (*TRAINING_DATA, *SPLITS)


def check_inputs(curriculum: Curriculum) -> None:
    """Check the store, the data sets and both encoders before any work begins.

    Raises ConfigError, which names the field, if one of them cannot be used.
    """
    Store(curriculum.store).check()
    check_data_sets(curriculum.data)
    try:
        encoder_fingerprints(curriculum.model)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    if clip := published_clip(curriculum):
        try:
            outline_image_text_encoder(clip)
        except ValueError as error:
            message = str(error).replace("model.clip.image_size", "published_image_size")
            raise ConfigError(message) from error


def published_clip(curriculum: Curriculum) -> ClipConfig | None:
    """Return CLIP at `published_image_size`; None if that is not set."""
    size = curriculum.published_image_size
    return curriculum.model.clip.model_copy(update={"image_size": size}) if size else None


def prepare(runner: Runner, record: RunRecord, names: Sequence[DataName] = DATA) -> None:
    """Make the samples of all data sets, and the ground truth of validation and evaluation.

    Raises ConfigError if nothing is left of a data set.
    """
    c = record.curriculum
    for name in names:
        data, tables = getattr(c.data, name), record.data[name]
        if note := open_source(data).note:
            text = f"[yellow]note:[/] {name}: {escape(note)}"
            console.print(text, highlight=False, soft_wrap=True)
        tables.samples = runner.run(PrepareSamples(data, c.num_buckets, name))
        require_some(tables.samples, name, "expression")
        if name in SPLITS:
            tables.ground_truth = runner.run(PrepareGroundTruth(data, tables.samples, name))
            require_some(tables.ground_truth, name, "expression with a mask")


def encode(runner: Runner, record: RunRecord, names: Sequence[DataName] = DATA) -> None:
    """Make the features of each picture, and the word features and embeddings of the texts."""
    c = record.curriculum
    for name in names:
        tables = record.data[name]
        tables.features = runner.run(EncodePictures(tables.samples, c.model, name))
        columns = ["picture", "class_name", "expressions"]
        rows = tables.samples.read_all(columns=columns).to_pylist()
        expressions = [e["text"] for row in rows for e in row["expressions"]]
        clip, buckets = c.model.clip, c.num_buckets
        tables.words = runner.run(EncodeWords.of(expressions, clip, buckets, name))
        if name != "d_ref":
            # The baselines need the whole expressions, and CLIP Surgery needs the empty text.
            labelled = rows if name != "evaluation" else []
            phrases = [p.text for row in labelled for p in _phrases_of(c, row)]
            phrases += [*expressions, ""]
            tables.phrases = runner.run(EncodePhrases.of(phrases, clip, buckets, name))


def _phrases_of(curriculum: Curriculum, row: dict) -> Iterator[Phrase]:
    """Yield the phrases of one sample."""
    if row["class_name"]:
        return class_phrases(row)
    return noun_phrases_of(row, curriculum.labels.chunker)


def label(runner: Runner, record: RunRecord) -> None:
    """Make the pseudo labels of D_sem, and round 0 of the labels of H."""
    c, d_sem, h = record.curriculum, record.data["object_centric"], record.data["referring"]
    d_sem.labels = runner.run(
        LabelObjectCentric(
            d_sem.samples, d_sem.features, d_sem.phrases, c.model, c.labels.object_centric, "d_sem"
        )
    )
    label_referring(runner, record, "referring", "h")
    if c.labels.unselected == "whole_expression":
        record.candidates = h.labels
        h.labels = runner.run(
            ReferByWholeExpression(h.labels, h.features, h.phrases, c.model, c.labels.referring)
        )


def label_referring(runner: Runner, record: RunRecord, name: DataName, shown: str) -> None:
    """Make round 0 of a referring data set's labels; `shown` is its name on the progress bar."""
    c, tables = record.curriculum, record.data[name]
    tables.labels = runner.run(
        LabelReferring(
            tables.samples,
            tables.features,
            tables.phrases,
            c.model,
            c.labels.referring,
            shown,
            c.labels,
        )
    )


def synthesise(runner: Runner, record: RunRecord) -> None:
    """Make D_ref: its pictures, expressions and labels, and then its features."""
    d_sem, d_ref = record.data["object_centric"], record.data["d_ref"]
    made = Synthesise(
        d_sem.samples, d_sem.labels, record.curriculum.model.sam, record.curriculum.synthesis
    )
    d_ref.samples = d_ref.labels = runner.run(made)
    encode(runner, record, ["d_ref"])


def check_sources(record: RunRecord) -> None:
    """Raise ConfigError if a stage has no sample of one of its sources, or none in an epoch.

    Select decides which candidate is the referent, and leaves the source of a sentence as it is.
    All stages can therefore be checked as soon as the labels of the training data are made.
    """
    numbers = Counter[str]()
    for table in training_tables(record).values():
        numbers.update(table.labels.info())  # see `num_by_source`
    faults = [
        f"stages.{name}.sources.{source}: no sample of {source} is left: remove this source, or "
        "give the curriculum data from which it is made"
        for name, stage in record.curriculum.stages.items()
        for source in stage.sources
        if not numbers[source]
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    for name, stage in record.curriculum.stages.items():
        check_counts(name, stage.sources, {source: numbers[source] for source in stage.sources})


# ---------------------------------------------------------------- tables that belong together


def label_table(record: RunRecord, name: DataName) -> LabelTable:
    """Return the labels of a data set together with its features."""
    tables = record.data[name]
    table = LABELS if name == "d_ref" else "data"
    return LabelTable(tables.labels, tables.features, tables.words, table)


def training_tables(record: RunRecord) -> dict[str, LabelTable]:
    """Return the labels that stages train on; the table `h` holds those of h_sem and h_ref."""
    return {
        "d_sem": label_table(record, "object_centric"),
        "d_ref": label_table(record, "d_ref"),
        "h": label_table(record, "referring"),
    }


def split_of(record: RunRecord, name: DataName) -> EvaluationSplit:
    """Return the tables that a measurement on a split reads."""
    tables = record.data[name]
    return EvaluationSplit(
        tables.samples, tables.features, tables.words, tables.phrases, tables.ground_truth
    )

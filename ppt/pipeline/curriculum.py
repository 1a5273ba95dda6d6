"""The curriculum from raw pictures to a trained point generator, step by step.

One driver function, `run_curriculum`, serves the commands, the ablation and the sweep. Every step
names what it makes by digest and skips what is there, so running again goes on where it stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ppt.config import ConfigError, Curriculum, ModelSelection, PointRecipe, Stage
from ppt.pipeline import evaluation, features, ingest, model_selection, selection
from ppt.pipeline.cluster import connected, fits_beside_training
from ppt.pipeline.evaluation import EvaluationSplit, evaluate_checkpoint, metrics_of
from ppt.pipeline.export import write_results
from ppt.pipeline.folder import RunFolder
from ppt.pipeline.label import label, phrases_of
from ppt.pipeline.mixture import LabelTable
from ppt.pipeline.monitor import EpochMetrics
from ppt.pipeline.passes import Pool
from ppt.pipeline.record import Chosen, RunRecord, StageRecord
from ppt.pipeline.report import write_report
from ppt.pipeline.sibling import Sibling
from ppt.pipeline.summary import summarise, write_summary
from ppt.pipeline.synthesise import synthesise_d_ref
from ppt.pipeline.tracking import Tracker
from ppt.pipeline.training import StageRun, train_stage
from ppt.pipeline.unselected import refer_by_whole_expression
from ppt.protocols import OURS, Protocol
from ppt.store import LABELS as LABEL_TABLE
from ppt.store import Node, Store

Step = Literal["prepare", "encode", "label", "train"]
STEPS: tuple[Step, ...] = ("prepare", "encode", "label", "train")

Split = Literal["validation", "evaluation"]
"""The splits that have a ground truth."""

TRAINING_DATA = ("referring", "object_centric")
SPLITS = ("validation", "evaluation")
DATA = (*TRAINING_DATA, *SPLITS)

BASELINES = ("clip_sam_published", "clip_sam_best")

PUBLISHED_RECIPE = PointRecipe(method="surgery", threshold=0.8)
"""CLIP Surgery's own way from a map to points."""

RECIPES = (
    PUBLISHED_RECIPE,
    *(
        PointRecipe(method="near", threshold=t, num_positive=p, num_negative=n)
        for t in (0.7, 0.8, 0.9)
        for p, n in ((1, 0), (4, 0), (6, 4))
    ),
)
"""Point recipes among which CLIP+SAM's best is chosen on the validation split (our choice)."""


def run_curriculum(
    curriculum: Curriculum,
    until: Step = "train",
    *,
    train: bool = True,
    sibling: Sibling | None = None,
) -> RunRecord:
    """Run the steps of a curriculum up to `until`; what is already there is not done again.

    With `train=False` a stage that is not trained yet is a ConfigError instead of hours of work.
    `sibling`: the run is one of several, and what it has to know of them.
    """
    check_inputs(curriculum)
    with connected(curriculum.resources):
        run = _Run(curriculum, allow_training=train, sibling=sibling)
        try:
            if until == "train":
                run.training_inputs()
                parent = sibling.parent if sibling else None
                with run.folder, Tracker(run.record, parent) as tracker:
                    run.baselines()
                    run.stages(tracker)
                    if run.record.stages:
                        tracker.choose(run.choose())
                    run.finish(tracker)
            else:
                run.prepare()
                if until != "prepare":
                    run.encode()
                if until == "label":
                    run.label()
                    run.synthesise()
        finally:
            run.pool.close()
        return run.record


def evaluate_curriculum(
    curriculum: Curriculum,
    *,
    stage: str | None = None,
    split: Split = "evaluation",
    protocol: Protocol = OURS,
) -> RunRecord:
    """Measure the baselines and the trained stages; the results are files in the run's folder.

    `stage` is a stage, one of its rounds or a baseline; with it only those before it must be
    trained, for a baseline none. ConfigError for what is not there.
    """
    steps = [step for name, _, step in training_runs(curriculum) if stage in (None, name, step)]
    if not steps and stage not in BASELINES:
        known = ", ".join([*BASELINES, *(step for _, _, step in training_runs(curriculum))])
        raise ConfigError(f"--stage: this curriculum has {known}, got {stage!r}")
    check_inputs(curriculum)
    with connected(curriculum.resources):
        run = _Run(curriculum, allow_training=False)
        run.record.split, run.record.protocol = split, protocol
        try:
            if steps:
                run.training_inputs()
            else:
                run.prepare()
                run.encode()
            run.baselines()
            run.measure(steps)
            if stage is None and run.record.stages:
                run.choose()
            with run.folder:
                write_results(run.record)
        finally:
            run.pool.close()
        return run.record


def check_inputs(curriculum: Curriculum) -> None:
    """Open every data set and both encoders before Ray starts; ConfigError says what is wrong."""
    for name in DATA:
        try:
            source = ingest.open_source(getattr(curriculum.data, name))
            if name in SPLITS:
                _ = source.ground_truth_fingerprint  # says so if there can be no truth
        except (ValueError, OSError) as error:
            raise ConfigError(f"data.{name}: {error}") from error
    try:
        features.encoder_spec(curriculum.model)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def select_after(curriculum: Curriculum, stage: str) -> Node:
    """The labels that the trained `stage` selects; it and those before it must be trained."""
    check_inputs(curriculum)
    with connected(curriculum.resources):
        run = _Run(curriculum, allow_training=False)
        try:
            run.training_inputs()
            return run.select_after(stage)
        finally:
            run.pool.close()


def training_runs(curriculum: Curriculum) -> Iterator[tuple[str, Stage, str]]:
    """(stage's name, stage, name of the training run); a round is a run of its own."""
    for name, stage in curriculum.stages.items():
        for round in range(1, stage.rounds + 1):
            yield name, stage, name if stage.rounds == 1 else f"{name}.{round}"


@dataclass(frozen=True)
class _Trained:
    """A training run that is done."""

    stage: str  # the key in the curriculum
    run: StageRun
    checkpoint: Node
    selected: Node | None  # the labels that Select made before it
    h: LabelTable  # H's labels as they are after it


@dataclass
class _Run:
    curriculum: Curriculum
    allow_training: bool
    sibling: Sibling | None = None
    store: Store = field(init=False)
    pool: Pool = field(init=False)
    folder: RunFolder = field(init=False)
    record: RunRecord = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.curriculum.store)
        self.pool = Pool(self.curriculum.resources)
        self.folder = RunFolder(self.store, self.curriculum.name)
        self.record = RunRecord(self.curriculum, self.folder.path)

    @property
    def nodes(self) -> dict[str, Node]:
        return self.record.nodes

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds = self.record.seconds.get(step, 0.0) + time.monotonic() - started
        self.record.seconds[step] = round(seconds, 1)

    # ------------------------------------------------------------ steps 1 to 4

    def training_inputs(self) -> None:
        """All four. Where nothing may be trained, what stages train on must be there already: with
        an override forgotten it would be made anew, for hours, only for them to be missing then.
        Else all data are prepared first, so that hours are not spent to be measured on nothing."""
        first, later = (DATA, ()) if self.allow_training else (TRAINING_DATA, SPLITS)
        self.pool.only_there = not self.allow_training
        self.prepare(first)
        self.encode(TRAINING_DATA)
        self.label()
        self.synthesise()
        self.pool.only_there = False
        self.prepare(later)
        self.encode(SPLITS)

    def prepare(self, names: Sequence[str] = DATA) -> None:
        """Samples of the data sets, and the ground truth of the held-out splits: the baselines
        need that of both. ConfigError where nothing is left of one."""
        c = self.curriculum
        with self._timed("prepare"):
            for name in names:
                data = getattr(c.data, name)
                self.nodes[f"samples.{name}"] = ingest.prepare_samples(
                    self.store, self.pool, data, name=name, num_buckets=c.num_buckets, seed=c.seed
                )
                ingest.require_some(self.nodes[f"samples.{name}"], name, "expression")
                if name in SPLITS:
                    self.nodes[f"ground_truth.{name}"] = ingest.prepare_ground_truth(
                        self.store, self.pool, data, name=name, num_buckets=c.num_buckets
                    )
                    truth = self.nodes[f"ground_truth.{name}"]
                    ingest.require_some(truth, name, "expression with a mask")

    def encode(self, names: Sequence[str] = DATA) -> None:
        with self._timed("encode"):
            for name in names:
                self._encode(name)

    def _encode(self, name: str) -> None:
        """Features of a data set's pictures, words of its expressions, embeddings of phrases."""
        c, samples = self.curriculum, self.nodes[f"samples.{name}"]
        self.nodes[f"features.{name}"] = features.encode_pictures(
            self.store, self.pool, samples, c.model, name=name
        )
        rows = samples.read_all(columns=["picture", "class_name", "expressions"]).to_pylist()
        expressions = [e["text"] for row in rows for e in row["expressions"]]
        kinds = {"words": expressions}
        labelled = name == "validation" and c.model_selection == "pseudo_iou"
        if name in ("validation", "evaluation") and not labelled:
            kinds["phrases"] = [*expressions, ""]  # CLIP+SAM takes the whole expression
        elif name != "d_ref":
            phrases = [p.text for row in rows for p in phrases_of(row, c.labels.chunker)]
            kinds["phrases"] = [*phrases, *expressions, ""]
        for kind, texts in kinds.items():
            encode = features.encode_words if kind == "words" else features.encode_phrases
            self.nodes[f"{kind}.{name}"] = encode(
                self.store, self.pool, texts, c.model.clip, name=name, num_buckets=c.num_buckets
            )

    def label(self) -> None:
        """Pseudo labels of D_sem and, round 0, of H."""
        c = self.curriculum
        with self._timed("label"):
            self._label("d_sem", "object_centric", c.labels.object_centric)
            self._label("h", "referring", c.labels.referring)
            if c.labels.unselected == "whole_expression":
                self._refer_unselected()

    def _label(self, name: str, of: str, recipe: PointRecipe) -> None:
        self.nodes[f"labels.{name}"] = label(
            self.store,
            self.pool,
            self.nodes[f"samples.{of}"],
            self.nodes[f"features.{of}"],
            self.nodes[f"phrases.{of}"],
            model=self.curriculum.model,
            labels=self.curriculum.labels,
            recipe=recipe,
            name=name,
        )

    def _refer_unselected(self) -> None:
        """H's labels with the referents that they have where nothing selects."""
        self.nodes["labels.h_candidates"] = self.nodes["labels.h"]
        self.nodes["labels.h"] = refer_by_whole_expression(
            self.store,
            self.pool,
            self.nodes["labels.h_candidates"],
            self.nodes["features.referring"],
            self.nodes["phrases.referring"],
            model=self.curriculum.model,
            recipe=self.curriculum.labels.referring,
        )

    def synthesise(self) -> None:
        """D_ref: pictures, expressions and labels, then their features."""
        with self._timed("synthesise"):
            d_ref = synthesise_d_ref(
                self.store,
                self.pool,
                self.nodes["samples.object_centric"],
                self.nodes["labels.d_sem"],
                synthesis=self.curriculum.synthesis,
                seed=self.curriculum.seed,
            )
            self.nodes["samples.d_ref"] = self.nodes["labels.d_ref"] = d_ref
            self._encode("d_ref")

    # ------------------------------------------------------------ steps 5 to 8

    def baselines(self) -> None:
        """CLIP+SAM as published, and with the recipe that does best on the validation split."""
        model = self.curriculum.model
        with self._timed("baselines"):
            recipe = evaluation.best_recipe(
                self.store, self.pool, self._split("validation"), RECIPES, model
            )
            for name, chosen in zip(BASELINES, (PUBLISHED_RECIPE, recipe), strict=True):
                results = evaluation.evaluate_recipe(
                    self.store,
                    self.pool,
                    self._split(self.record.split),
                    chosen,
                    model,
                    name=name,
                    protocol=self.record.protocol,
                )
                self.nodes[f"results.{name}"] = results
                self.record.baselines[name] = metrics_of(results)
                self.record.recipes[name] = chosen

    def stages(self, tracker: Tracker) -> None:
        """Train, or find trained, and measure every stage."""
        for trained in self._trained(lambda step: self._heard(step, tracker)):
            stage = self._evaluate(trained)
            tracker.finish_stage(stage)
            self.folder.publish()
            if self.sibling:
                chosen = self.choose()
                tracker.choose(chosen)
                self.sibling.listener.stage(stage, chosen.scores.get(stage.name, math.nan))

    @contextmanager
    def _heard(self, step: str, tracker: Tracker) -> Iterator[Callable[[EpochMetrics], None]]:
        """The tracker's logger of epochs; the listener, if there is one, hears of them too."""

        def on_epoch(losses: EpochMetrics) -> None:
            log(losses)
            if self.sibling:
                node = self.nodes[f"checkpoints.{step}"]
                self.sibling.listener.epoch(step, node, int(losses["epoch"]))

        with tracker.stage(step) as log:
            yield on_epoch

    def measure(self, steps: Sequence[str]) -> None:
        """Measure those training runs; those after the last of them need not be there."""
        if not steps:
            return
        for trained in self._trained(_untracked):
            if trained.run.name in steps:
                self._evaluate(trained)
            if trained.run.name == steps[-1]:
                return

    def _trained(
        self, tracked: Callable[[str], AbstractContextManager[Callable[[EpochMetrics], None]]]
    ) -> Iterator[_Trained]:
        """Every training run in order, each from where the one before ended (Eq. 5 to 7)."""
        tables = {name: self._label_table(name) for name in ("d_sem", "d_ref", "h")}
        checkpoint: Node | None = None
        for name, stage, step in training_runs(self.curriculum):
            selected = None
            if stage.select:
                assert checkpoint is not None  # the configuration says so
                selected = self._select(tables["h"], checkpoint)
                tables["h"] = replace(tables["h"], labels=selected)
            run = self._stage_run(step, stage, _used(tables, stage), checkpoint)
            with tracked(step) as on_epoch:
                checkpoint = self._train(run, on_epoch)
            yield _Trained(name, run, checkpoint, selected, tables["h"])

    def _evaluate(self, trained: _Trained) -> StageRecord:
        run, checkpoint = trained.run, trained.checkpoint
        results = evaluate_checkpoint(
            self.store,
            self.pool,
            self._split(self.record.split),
            checkpoint,
            self.curriculum.model,
            name=run.name,
            protocol=self.record.protocol,
        )
        self.nodes[f"results.{run.name}"] = results
        manifest = checkpoint.manifest()
        record = StageRecord(
            name=run.name,
            stage=trained.stage,
            checkpoint=checkpoint,
            results=results,
            metrics=metrics_of(results),
            history=manifest["history"],
            num_epochs=run.stage.num_epochs,
            seconds=manifest["seconds"],
            selected=trained.selected,
        )
        self.record.stages.append(record)
        return record

    def choose(self) -> Chosen:
        """Which of the stages so far is the run's model; none is measured for it twice."""
        by = self.curriculum.model_selection
        scores = dict(self.record.chosen.scores) if self.record.chosen else {}
        if by != "last":
            with self._timed("choose"):
                for stage in self.record.stages:
                    if stage.name not in scores:
                        scores[stage.name] = self._score(stage)
        names = [stage.name for stage in self.record.stages]
        self.record.chosen = model_selection.choose_stage(by, names, scores)
        return self.record.chosen

    def _score(self, stage: StageRecord) -> float:
        """What `model_selection` chooses by, in percent."""
        by = self.curriculum.model_selection
        if by == "pseudo_iou" and "labels.validation" not in self.nodes:
            self._label("validation", "validation", self.curriculum.labels.referring)
        results = self.nodes[f"results.validation.{stage.name}"] = self._validate(stage, by)
        return metrics_of(results)["mIoU"]

    def _validate(self, stage: StageRecord, by: ModelSelection) -> Node:
        """A stage on the validation split, against its truth or against its pseudo labels."""
        made_by, model = (self.store, self.pool), self.curriculum.model
        name = f"{stage.name} on validation"
        if by == "truth":
            split = self._split("validation")
            return evaluate_checkpoint(*made_by, split, stage.checkpoint, model, name=name)
        labels = self._label_table("validation")
        return model_selection.agreement(*made_by, labels, stage.checkpoint, model, name=name)

    def finish(self, tracker: Tracker) -> None:
        """Results, summary and page in the run's folder; the latter two in MLflow as well."""
        write_results(self.record)
        folder = Path(self.record.folder)
        summary = write_summary(summarise(self.record), folder / "summary.json")
        self.record.report = write_report(self.record, folder / "report.html")
        tracker.log_files([summary, self.record.report])

    def select_after(self, stage: str) -> Node:
        """The labels that the trained stage `stage` selects, from those that it was trained on."""
        for trained in self._trained(_untracked):
            if stage in (trained.stage, trained.run.name):
                return self._select(trained.h, trained.checkpoint)
        known = ", ".join(step for _, _, step in training_runs(self.curriculum))
        raise ConfigError(f"--after: this curriculum trains {known}, got {stage!r}")

    def _select(self, before: LabelTable, checkpoint: Node) -> Node:
        round = 1 + sum(name.startswith("labels.h.") for name in self.nodes)
        selected = selection.select_referents(
            self.store,
            self.pool,
            before,
            checkpoint,
            model=self.curriculum.model,
            select=self.curriculum.select,
            round=round,
        )
        self.nodes[f"labels.h.{round}"] = selected
        return selected

    def _stage_run(
        self, step: str, stage: Stage, tables: tuple[LabelTable, ...], initial: Node | None
    ) -> StageRun:
        c = self.curriculum
        return StageRun(
            name=step,
            stage=stage,
            training=c.training,
            model=c.model,
            tables=tables,
            initial=initial,
            seed=c.seed,
            resources=c.resources,
        )

    def _train(self, run: StageRun, on_epoch: Callable[[EpochMetrics], None]) -> Node:
        node = run.checkpoint_node(self.store)
        self.nodes[f"checkpoints.{run.name}"] = node
        if not node.is_complete():
            if not self.allow_training:
                raise ConfigError(
                    f"stage {run.name!r} is not trained yet: run `ppt train` with this curriculum"
                )
            runs = self.sibling.runs if self.sibling else 1
            if not fits_beside_training(self.curriculum.resources, runs):
                self.pool.close()
        return train_stage(run, node, title=f"train {run.name}", on_epoch=on_epoch)

    # ------------------------------------------------------------ names to nodes

    def _label_table(self, name: str) -> LabelTable:
        of = {"d_sem": "object_centric", "h": "referring"}.get(name, name)
        return LabelTable(
            self.nodes[f"labels.{name}"],
            self.nodes[f"features.{of}"],
            self.nodes[f"words.{of}"],
            LABEL_TABLE if name == "d_ref" else "data",
        )

    def _split(self, name: str) -> EvaluationSplit:
        return EvaluationSplit(
            name,
            self.nodes[f"samples.{name}"],
            self.nodes[f"features.{name}"],
            self.nodes[f"words.{name}"],
            self.nodes[f"phrases.{name}"],
            self.nodes[f"ground_truth.{name}"],
        )


def _untracked(step: str) -> AbstractContextManager[Callable[[EpochMetrics], None]]:
    """Losses that nobody wants to hear again."""
    return nullcontext(lambda losses: None)


def _used(tables: Mapping[str, LabelTable], stage: Stage) -> tuple[LabelTable, ...]:
    """The label tables of a stage's sources; table `h` holds h_sem and h_ref."""
    return tuple(
        table
        for name, table in tables.items()
        if any(source.startswith(name) for source in stage.sources)
    )

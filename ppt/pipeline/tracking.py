"""MLflow: a parent run for the curriculum, a nested run for each stage.

Running the same configuration again goes on in the same runs and logs nothing twice; a run that
was killed stays open until then. Default store: SQLite in the run's folder; any other by the
environment variable MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ppt.config import Curriculum, Stage
from ppt.pipeline.monitor import EpochMetrics
from ppt.pipeline.record import Chosen, RunRecord, StageRecord
from ppt.pipeline.report.gallery import stage_panels
from ppt.pipeline.summary import digests
from ppt.store import digest_of
from ppt.table3 import METRICS

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ppt.pipeline.ablation import Ablation

EXPERIMENT = "ppt"
STATE_FILE = "mlflow-run.json"


class Run:
    """One MLflow run that never gets the same parameter, or metric of the same step, twice."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        data = client.get_run(run_id).data
        self.tags: dict[str, str] = dict(data.tags)
        self._params = set(data.params)
        self._metrics = {
            (name, point.step)
            for name in data.metrics
            for point in client.get_metric_history(run_id, name)
        }

    def log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        new = {name: value for name, value in params.items() if name not in self._params}
        self.client.log_batch(self.run_id, params=[Param(k, str(v)) for k, v in new.items()])
        self._params |= new.keys()

    def log_metrics(self, metrics: Mapping[str, Any], step: int, prefix: str = "") -> None:
        """Numbers under names that MLflow takes: `P@0.5` becomes `P_at_0.5`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [
            Metric(prefix + _name(name), float(value), now, step)
            for name, value in metrics.items()
            if isinstance(value, int | float)
        ]
        new = [point for point in points if (point.key, step) not in self._metrics]
        self.client.log_batch(self.run_id, metrics=new)
        self._metrics |= {(point.key, step) for point in new}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        self.tags |= tags

    def end(self, error: BaseException | None) -> None:
        by_hand = isinstance(error, KeyboardInterrupt)
        status = "KILLED" if by_hand else "FAILED" if error else "FINISHED"
        self.client.set_terminated(self.run_id, status)


class Tracker:
    """The runs of one curriculum. Leaving the `with` block ends the parent FINISHED, FAILED or, by
    Ctrl-C, KILLED."""

    def __init__(self, record: RunRecord, parent: str | None = None) -> None:
        """`parent`: the run of a sweep, which this run is a part of."""
        self.record = record
        self.parent = parent
        self.folder = Path(record.folder).resolve()
        self.uri = tracking_uri(self.folder)
        self._open: dict[str, Run] = {}  # nested runs that wait for their results
        self._num_stages = 0

    def __enter__(self) -> Tracker:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.client = quiet_client(self.uri)
        self.run = Run(self.client, self._resumed() or self._created())
        if self.parent:
            self.run.set_tags({"mlflow.parentRunId": self.parent})
        self.run.log_params(flatten(self.record.curriculum.model_dump(mode="json")))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name, metrics in self.record.baselines.items():
            self.run.log_metrics(metrics, step=0, prefix=f"{name}/")
        self.run.set_tags({f"digest.{name}": d for name, d in digests(self.record).items()})
        for run in [*self._open.values(), self.run]:
            run.end(error)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[EpochMetrics], None]]:
        """The nested run of a training run; yields what logs an epoch's losses.

        It may be called for epochs of an earlier invocation too. The run ends with `finish_stage`.
        """
        run = self._open[name] = Run(self.client, self._nested(name))
        run.log_params(flatten(_stage_of(self.record.curriculum, name).model_dump(mode="json")))

        def log_epoch(losses: EpochMetrics) -> None:
            means = {loss: value for loss, value in losses.items() if loss != "epoch"}
            run.log_metrics(means, step=int(losses["epoch"]))

        yield log_epoch

    def finish_stage(self, stage: StageRecord) -> None:
        """Metrics on the evaluation split, the checkpoint's files, prediction panels, digests.

        The parent gets the metrics too: under the stage's name, and as a point of one curve.
        """
        run = self._open.pop(stage.name)
        run.log_metrics(stage.metrics, step=stage.num_epochs)
        self._num_stages += 1
        self.run.log_metrics(stage.metrics, step=self._num_stages)
        self.run.log_metrics(stage.metrics, step=0, prefix=f"{_name(stage.name)}/")
        if run.tags.get("ppt.results") != stage.results.digest:
            self._log_files(run, stage)
        run.end(None)

    def _log_files(self, run: Run, stage: StageRecord) -> None:
        self.client.log_artifacts(run.run_id, stage.checkpoint.local_folder(), "checkpoint")
        for name, panel in stage_panels(self.record, stage).items():
            self.client.log_image(run.run_id, panel, artifact_file=f"panels/{name}.png")
        tags = {"ppt.checkpoint": stage.checkpoint.digest, "ppt.results": stage.results.digest}
        if stage.selected:
            tags["ppt.selected"] = stage.selected.digest
        run.set_tags(tags)  # last: until then the files may be incomplete

    def choose(self, chosen: Chosen) -> None:
        """The run's model so far: its stage as a tag, its metrics in percent as `chosen/...`."""
        stage = next(stage for stage in self.record.stages if stage.name == chosen.stage)
        self.run.set_tags({"ppt.chosen": chosen.stage, "ppt.chosen_by": chosen.by})
        figures = dict(stage.metrics)
        if chosen.scores:
            figures[chosen.by] = chosen.scores[stage.name]
        self.run.log_metrics(figures, step=self._num_stages, prefix="chosen/")

    def log_files(self, paths: Iterable[Path]) -> None:
        """The summary and the page, as artifacts of the parent."""
        for path in paths:
            self.client.log_artifact(self.run.run_id, str(path))

    # ------------------------------------------------------------ which run

    @property
    def _state(self) -> dict[str, str]:
        """What must agree for a run to be gone on with. `resources` changes no result but the
        order of sums, with the number of workers."""
        config = self.record.curriculum.model_dump(mode="json", exclude={"store", "resources"})
        digest = digest_of([config, self.record.curriculum.resources.num_workers])
        return {"config_digest": digest, "tracking_uri": self.uri}

    def _resumed(self) -> str | None:
        from mlflow.exceptions import MlflowException

        path = self.folder / STATE_FILE
        if not path.exists():
            return None
        state = json.loads(path.read_text())
        run_id = state.pop("run_id")
        if state != self._state:
            return None
        try:
            if self.client.get_run(run_id).info.lifecycle_stage == "deleted":
                return None
        except MlflowException:  # somebody removed the database
            return None
        self.client.update_run(run_id, status="RUNNING")
        return run_id

    def _created(self) -> str:
        run = self.client.create_run(
            self._experiment(),
            run_name=self.record.curriculum.name,
            tags={"ppt.kind": "curriculum"},
        )
        state = {"run_id": run.info.run_id, **self._state}
        temporary = self.folder / f".{STATE_FILE}"
        temporary.write_text(json.dumps(state, indent=2))
        os.replace(temporary, self.folder / STATE_FILE)
        return run.info.run_id

    def _nested(self, name: str) -> str:
        parent = self.run.run_id
        found = self.client.search_runs(
            [self._experiment()],
            f"tags.`mlflow.parentRunId` = '{parent}' and tags.`ppt.stage` = '{name}'",
        )
        if found:
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        tags = {"mlflow.parentRunId": parent, "ppt.kind": "stage", "ppt.stage": name}
        return self.client.create_run(self._experiment(), run_name=name, tags=tags).info.run_id

    def _experiment(self) -> str:
        return experiment(self.client, self.uri)


def end_running_below(client: MlflowClient, parent: str) -> None:
    """End as KILLED what runs under `parent`, at any depth: nobody is left who would end it."""
    ours = client.get_run(parent).info.experiment_id
    for run in client.search_runs([ours], f"tags.`mlflow.parentRunId` = '{parent}'"):
        end_running_below(client, run.info.run_id)
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")


def log_ablation(uri: str, ablation: Ablation, files: Iterable[Path]) -> None:
    """The ablation's own run: each line's mean metrics, the cost, the table, plot and page.

    The runs of its rows become its children.
    """
    from mlflow.entities import Metric

    client = quiet_client(uri)
    tags = {"ppt.kind": "ablation", "ppt.ablation": ablation.name}
    ours = experiment(client, uri)
    found = client.search_runs([ours], f"tags.`ppt.ablation` = '{ablation.name}'")
    run_id = (
        found[0] if found else client.create_run(ours, run_name=ablation.name, tags=tags)
    ).info.run_id
    values: dict[str, float] = {
        "stage_epochs": ablation.stage_epochs,
        "stage_epochs_without_sharing": ablation.stage_epochs_unshared,
        **{f"{line.name}/{m}": line.mean(m) for line in ablation.lines for m in METRICS},
    }
    now = int(time.time() * 1000)
    client.log_batch(run_id, [Metric(_name(k), float(v), now, 0) for k, v in values.items()])
    measured = [measured for line in ablation.lines for measured in line.by_seed.values()]
    for folder in {m.record.folder for m in measured}:  # row 1 fills two lines
        state = json.loads((Path(folder) / STATE_FILE).read_text())
        client.set_tag(state["run_id"], "mlflow.parentRunId", run_id)
    for path in files:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, "FINISHED")


def tracking_uri(folder: str | Path) -> str:
    """The tracking server that the environment names, else an SQLite file in `folder`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return uri or f"sqlite:///{Path(folder).resolve()}/mlflow.db"


def _stage_of(curriculum: Curriculum, name: str) -> Stage:
    """The stage of a training run: a round is called <stage>.<round>."""
    return curriculum.stages.get(name) or curriculum.stages[name.rpartition(".")[0]]


def experiment(client: MlflowClient, uri: str) -> str:
    """The id of our experiment; an SQLite store has its artifacts beside it."""
    if found := client.get_experiment_by_name(EXPERIMENT):
        return found.experiment_id
    beside = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts"
    location = beside.as_uri() if uri.startswith("sqlite:///") else None
    return client.create_experiment(EXPERIMENT, artifact_location=location)


def quiet_client(uri: str) -> MlflowClient:
    """A client that neither talks on the terminal nor calls home."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # takes seconds, and reads the line above

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + _name(key)] = value
    return flat


def _name(text: str) -> str:
    """MLflow's names may hold letters, digits and _ - . : / only."""
    return re.sub(r"[^\w.:/-]", "_", text.replace("@", "_at_"))

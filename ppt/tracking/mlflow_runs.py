"""MLflow runs: a parent run for the curriculum, and a nested run for each training.

When the same configuration is run again, the same MLflow runs are continued and nothing is logged
twice. The MLflow run of a process that was killed stays open until then. By default MLflow keeps
its data in an SQLite file in the run's folder; the environment variable MLFLOW_TRACKING_URI names
another server.

When the server is down, or the database cannot be written, a run goes on. What could not be logged
waits in its order. It is logged at the end of a stage, at the end of the run, or when the run is
repeated.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ppt.config import ConfigError, Curriculum, Stage
from ppt.store.disk import replacing
from ppt.store.locks import locked_file
from ppt.store.nodes import digest_of
from ppt.tracking.record import Chosen, RunRecord, StageRecord
from ppt.tracking.summary import digests
from ppt.training.stage import EpochMetrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL import Image

EXPERIMENT = "ppt"
STATE_FILE = "mlflow-run.json"


class Run:
    """An MLflow run that logs each parameter once, and each metric once for each MLflow step."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self.read()

    def read(self) -> None:
        """Read what has been logged; a server may have kept what it did not confirm."""
        data = self.client.get_run(self.run_id).data
        self.tags: dict[str, str] = dict(data.tags)
        self._params = set(data.params)
        self._metrics = {
            (name, point.step)
            for name in data.metrics
            for point in self.client.get_metric_history(self.run_id, name)
        }

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the parameters that the MLflow run does not have yet."""
        from mlflow.entities import Param

        new = {name: value for name, value in params.items() if name not in self._params}
        self.client.log_batch(self.run_id, params=[Param(k, str(v)) for k, v in new.items()])
        self._params |= new.keys()

    def log_metrics(self, metrics: Mapping[str, Any], step: int, prefix: str = "") -> None:
        """Log numbers under names that MLflow accepts: `P@0.5` becomes `P_at_0.5`.

        Args:
            metrics: the values by name. Values that are not numbers are skipped.
            step: MLflow's `step`, the position of the values on the horizontal axis of a chart.
            prefix: text that is put before each name.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [
            Metric(prefix + mlflow_name(name), float(value), now, step)
            for name, value in metrics.items()
            if isinstance(value, int | float)
        ]
        new = [point for point in points if (point.key, step) not in self._metrics]
        self.client.log_batch(self.run_id, metrics=new)
        self._metrics |= {(point.key, step) for point in new}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags in MLflow and in `tags`."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        self.tags |= tags

    def end(self, error: BaseException | None) -> None:
        """End the run as FINISHED, as KILLED after Ctrl-C, or as FAILED after any other error."""
        by_hand = isinstance(error, KeyboardInterrupt)
        status = "KILLED" if by_hand else "FAILED" if error else "FINISHED"
        self.client.set_terminated(self.run_id, status)


class Tracker:
    """The MLflow runs of one curriculum, as a context manager.

    Leaving the block ends the parent run as FINISHED, as KILLED after Ctrl-C, or as FAILED after
    any other error.
    """

    def __init__(
        self,
        record: RunRecord,
        parent: str | None = None,
        *,
        anew: bool = False,
        tell: Callable[[str], None] = print,
    ) -> None:
        """Describe the runs.

        Args:
            record: the record of the run.
            parent: the MLflow run to which this run belongs, such as that of a sweep.
            anew: whether to create new MLflow runs, because figures of former ones are outdated.
            tell: is called with a line for the user when MLflow fails.
        """
        self.record = record
        self.parent = parent
        self.anew = anew
        self.folder = Path(record.folder).resolve()
        self.uri = tracking_uri(self.folder)
        self.tell = tell
        self.run: Run | None = None
        self._open: dict[str, Run] = {}  # nested runs whose results are not logged yet
        self._num_stages = 0
        self._waiting: deque[Callable[[], None]] = deque()  # what is not logged yet, in its order
        self._has_failed = False

    def __enter__(self) -> Tracker:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log(self._begin)
        return self

    def _begin(self) -> None:
        self.client = quiet_client(self.uri)
        self.run = Run(self.client, self._resumed() or self._created())
        if self.parent:
            self.run.set_tags({"mlflow.parentRunId": self.parent})
        self.run.log_params(flatten(self.record.curriculum.model_dump(mode="json")))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._log(partial(self._end, error), again=True)
        if self._waiting:
            self.tell("MLflow: what is missing there is logged when the command is run again")

    def _end(self, error: BaseException | None) -> None:
        assert self.run
        for name, baseline in self.record.baselines.items():
            self.run.log_metrics(baseline.metrics, step=0, prefix=f"{name}/")
        self.run.set_tags({f"digest.{name}": d for name, d in digests(self.record).items()})
        for run in [*self._open.values(), self.run]:
            run.end(error)

    def _log(self, action: Callable[[], None], *, again: bool = False) -> None:
        """Do what is waiting and then `action`, which may be done twice.

        After a failure everything waits until there is a call with `again`.
        """
        self._waiting.append(action)
        if self._has_failed and not again:
            return
        try:
            if self._has_failed:
                for run in [self.run, *self._open.values()]:
                    if run:
                        run.read()
            while self._waiting:
                self._waiting[0]()
                self._waiting.popleft()
        except _failures() as error:
            if not self._has_failed:
                told = f"MLflow at {self.uri} fails, the run goes on without it"
                self.tell(f"{told}: {_in_a_line(error)}")
            self._has_failed = True
        else:
            self._has_failed = False

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[EpochMetrics], None]]:
        """Open the nested run of a training, and yield a function that logs an epoch's losses.

        The function may also be called for epochs that were trained in an earlier invocation.
        `finish_stage` ends the nested run.
        """
        self._log(partial(self._begin_stage, name))

        def log_epoch(losses: EpochMetrics) -> None:
            means = {loss: value for loss, value in losses.items() if loss != "epoch"}
            self._log(lambda: self._open[name].log_metrics(means, step=int(losses["epoch"])))

        yield log_epoch

    def _begin_stage(self, name: str) -> None:
        run = self._open[name] = Run(self.client, self._nested(name))
        run.log_params(flatten(_stage_of(self.record.curriculum, name).model_dump(mode="json")))

    def finish_stage(
        self, stage: StageRecord, panels: Callable[[], Mapping[str, Image.Image]]
    ) -> None:
        """Log the results of a training, and end its nested run.

        The nested run gets the metrics and the diagnosis on the evaluation split, the checkpoint's
        files, the prediction panels and the digests. The parent run gets the metrics too: under the
        name of the training, and as a point of one curve over all trainings.

        Args:
            stage: the record of the training.
            panels: draws the prediction panels by name. It is called only if they were not logged
                before.
        """
        self._num_stages += 1
        self._log(partial(self._finish_stage, stage, panels, self._num_stages), again=True)

    def _finish_stage(
        self, stage: StageRecord, panels: Callable[[], Mapping[str, Image.Image]], number: int
    ) -> None:
        assert self.run
        run = self._open[stage.name]
        run.log_metrics(stage.metrics, step=stage.num_epochs)
        run.log_metrics(stage.diagnosis, step=stage.num_epochs, prefix="diagnosis/")
        self.run.log_metrics(stage.metrics, step=number)
        self.run.log_metrics(stage.metrics, step=0, prefix=f"{mlflow_name(stage.name)}/")
        if run.tags.get("ppt.results") != stage.results.digest:
            self._log_files(run, stage, panels())
        run.end(None)
        del self._open[stage.name]

    def _log_files(self, run: Run, stage: StageRecord, panels: Mapping[str, Image.Image]) -> None:
        self.client.log_artifacts(run.run_id, stage.checkpoint.local_folder(), "checkpoint")
        for name, panel in panels.items():
            self.client.log_image(run.run_id, panel, artifact_file=f"panels/{name}.png")
        tags = {
            "ppt.training.checkpoint": stage.checkpoint.digest,
            "ppt.results": stage.results.digest,
        }
        if stage.selected:
            tags["ppt.selected"] = stage.selected.digest
        run.set_tags(tags)  # set last: the digests mark the files as complete

    def choose(self, chosen: Chosen) -> None:
        """Log the model so far: its stage as a tag, and its metrics in percent as `chosen/...`."""
        self._log(partial(self._choose, chosen, self._num_stages))

    def _choose(self, chosen: Chosen, number: int) -> None:
        assert self.run
        stage = self.record.stage(chosen.stage)
        self.run.set_tags({"ppt.chosen": chosen.stage, "ppt.chosen_by": chosen.by})
        figures = dict(stage.metrics)
        if chosen.scores:
            figures[chosen.by] = chosen.scores[stage.name]
        self.run.log_metrics(figures, step=number, prefix="chosen/")

    def log_files(self, paths: Iterable[Path]) -> None:
        """Log files, such as the summary and the page, as artifacts of the parent run."""
        for path in paths:
            self._log(partial(self._log_file, path))

    def _log_file(self, path: Path) -> None:
        assert self.run
        self.client.log_artifact(self.run.run_id, str(path))

    # ------------------------------------------------------------ finding the MLflow runs

    @property
    def _state(self) -> dict[str, str]:
        """The facts that must be equal for an MLflow run to be continued.

        Of `resources` only the number of workers is compared, because it changes the order of sums.
        """
        config = self.record.curriculum.model_dump(mode="json", exclude={"store", "resources"})
        digest = digest_of([config, self.record.curriculum.resources.num_workers])
        return {"config_digest": digest, "tracking_uri": self.uri}

    def _resumed(self) -> str | None:
        """Reopen the MLflow run to be continued and return its id, or None if there is none."""
        from mlflow.exceptions import MlflowException

        path = self.folder / STATE_FILE
        if self.anew or not path.exists():
            return None
        try:
            state = json.loads(path.read_text())
            run_id = state.pop("run_id")
        except (ValueError, KeyError, TypeError, AttributeError):  # damaged: a new run is begun
            return None
        if state != self._state:
            return None
        try:
            if self.client.get_run(run_id).info.lifecycle_stage == "deleted":
                return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # the database was removed
        self.client.update_run(run_id, status="RUNNING")
        return run_id

    def _created(self) -> str:
        """Create the parent run, remember it in the run's folder, and return its id."""
        run = self.client.create_run(
            self._experiment(),
            run_name=self.record.curriculum.name,
            tags={"ppt.kind": "curriculum"},
        )
        state = {"run_id": run.info.run_id, **self._state}
        with replacing(self.folder / STATE_FILE) as temporary:
            temporary.write_text(json.dumps(state, indent=2))
        return run.info.run_id

    def _nested(self, name: str) -> str:
        """Reopen or create the nested run of a training, and return its id."""
        assert self.run
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


def _failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of a tracking server or database that fails."""
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, CommandError, sqlite3.Error, OSError


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def needed(uri: str) -> Iterator[None]:
    """Raise ConfigError in the block if MLflow fails there."""
    try:
        yield
    except _failures() as error:
        raise ConfigError(
            f"MLflow at {uri} fails: {_in_a_line(error)}: run the command again when it answers, "
            "what is done is found"
        ) from error


def end_running_below(client: MlflowClient, parent: str) -> None:
    """End as KILLED every running MLflow run below `parent`, at any depth.

    It is called when no process is left that would end them.
    """
    ours = client.get_run(parent).info.experiment_id
    for run in client.search_runs([ours], f"tags.`mlflow.parentRunId` = '{parent}'"):
        end_running_below(client, run.info.run_id)
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")


def tracking_uri(folder: str | Path) -> str:
    """Return the tracking server that the environment names, or an SQLite file in `folder`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return uri or f"sqlite:///{Path(folder).resolve()}/mlflow.db"


def _stage_of(curriculum: Curriculum, name: str) -> Stage:
    """Return the stage that a training belongs to; a round's training is called <stage>.<round>."""
    return curriculum.stages.get(name) or curriculum.stages[name.rpartition(".")[0]]


def experiment(client: MlflowClient, uri: str) -> str:
    """Return the id of the MLflow experiment `ppt`, which is created if it does not exist.

    With an SQLite store, the artifacts are kept in a folder beside the database.
    """
    if found := client.get_experiment_by_name(EXPERIMENT):
        return found.experiment_id
    beside = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts"
    location = beside.as_uri() if uri.startswith("sqlite:///") else None
    return client.create_experiment(EXPERIMENT, artifact_location=location)


def quiet_client(uri: str) -> MlflowClient:
    """Return an MLflow client that logs only warnings and sends no telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A server that does not answer is tried again later: nothing should wait for it for long.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient  # slow to import; reads the variable set above

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs a traceback for each error of the database, which is told in a line here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if not uri.startswith("sqlite:///"):
        return MlflowClient(uri)
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    # MLflow tries a damaged file for minutes, and two processes may not make its tables at once.
    with locked_file(path.with_name(f"{path.name}.lock")):
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")
        return MlflowClient(uri)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one whose keys are joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + mlflow_name(key)] = value
    return flat


def mlflow_name(text: str) -> str:
    """Replace the characters that MLflow forbids in names: all but letters, digits and _ - . : /"""
    return re.sub(r"[^\w.:/-]", "_", text.replace("@", "_at_"))

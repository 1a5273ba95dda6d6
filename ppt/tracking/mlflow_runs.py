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
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import ppt
from ppt.config import ConfigError, Curriculum, Stage
from ppt.store.disk import replacing
from ppt.store.locks import locked_file
from ppt.store.nodes import digest_of
from ppt.tracking.record import Chosen, RunRecord, StageRecord
from ppt.tracking.summary import digests
from ppt.training.stage import EpochMetrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Experiment
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    from PIL import Image

EXPERIMENT = "ppt"
STATE_FILE = "mlflow-run.json"

KEY_TAG = "ppt.key"
"""The tag of a curriculum's run by which it is found if its id was not noted."""

KIND_TAG = "mlflow.experimentKind"
"""The tag of an experiment by which MLflow's pages begin with its runs instead of traces."""

SQLITE = "sqlite:///"
ARTIFACTS = "mlartifacts"
"""The folder of the artifacts, beside an SQLite database."""

OWN = "mlflow.db"
"""How a run's folder names its own database in STATE_FILE, wherever the folder lies."""

DIGESTS_FILE = "digests.json"
"""The artifact with the digests of everything that a run was made of."""


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
        self._system_metrics: SystemMetricsMonitor | None = None
        self._waiting: deque[Callable[[], None]] = deque()  # what is not logged yet, in its order
        self._has_failed = False

    def __enter__(self) -> Tracker:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log(self._begin)
        return self

    def _begin(self) -> None:
        move_artifacts(self.uri)
        self.client = quiet_client(self.uri)
        self.run = Run(self.client, self._resumed() or self._created())
        if self.parent:
            self.run.set_tags({"mlflow.parentRunId": self.parent})
        self.run.log_params(flatten(self.record.curriculum.model_dump(mode="json")))
        if "ppt.version" not in self.run.tags:  # a run that is told anew keeps who began it
            self.run.set_tags(_source_tags())
        self._system_metrics = self._system_metrics or system_metrics(self.run.run_id, self.uri)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._system_metrics:
            self._system_metrics.finish()
        self._log(partial(self._end, error), again=True)
        if self._waiting:
            self.tell("MLflow: what is missing there is logged when the command is run again")

    def _end(self, error: BaseException | None) -> None:
        assert self.run
        for name, baseline in self.record.baselines.items():
            self.run.log_metrics(baseline.metrics, step=0, prefix=f"{name}/")
        if self.record.baselines:  # else the run had not got that far
            self._log_json(self.run, digests(self.record), DIGESTS_FILE)
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
                self.tell(f"{told}: {in_a_line(error)}")
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

    def log_data(self) -> None:
        """Log the data sets of the curriculum, with the digests of their samples, as inputs."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for role, tables in self.record.data.items():
            if not tables.has("samples"):
                continue
            config = getattr(self.record.curriculum.data, role, None)  # None for D_ref
            source = config.model_dump(mode="json") if config else {"made_from": "object_centric"}
            counts = {unit: number["out"] for unit, number in tables.samples.counts().items()}
            dataset = Dataset(
                name=role,
                digest=tables.samples.digest[:36],
                source_type=source.get("format", "synthesis"),
                source=json.dumps(source),
                profile=json.dumps(counts),
            )
            context = "training" if role in ("referring", "object_centric", "d_ref") else role
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self._log(partial(self._log_inputs, inputs))

    def _log_inputs(self, inputs: list[DatasetInput]) -> None:
        assert self.run
        self.client.log_inputs(self.run.run_id, inputs)

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

    def _log_json(self, run: Run, content: Mapping[str, Any], name: str) -> None:
        self.client.log_dict(run.run_id, dict(content), name)

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
        uri = OWN if self.uri == own_uri(self.folder) else self.uri
        return {"config_digest": digest, "tracking_uri": uri}

    def _resumed(self) -> str | None:
        """Reopen the MLflow run to be continued and return its id, or None if there is none."""
        from mlflow.exceptions import MlflowException

        path = self.folder / STATE_FILE
        if self.anew or not path.exists():
            return None
        try:
            state = json.loads(path.read_text())
            run_id, key = state.pop("run_id", None), str(state.pop("key", ""))
        except (ValueError, TypeError, AttributeError):  # damaged: a new run is begun
            return None
        if state != self._state:
            return None
        if run_id is None:
            if (run_id := self._with_key(key)) is None:
                return None
            self._remember(run_id=run_id)
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
        """Create the parent run, remember it in the run's folder, and return its id.

        A key is remembered first, by which the run is found if this process is killed meanwhile.
        """
        key = uuid.uuid4().hex
        self._remember(key=key)
        run = self.client.create_run(
            self._experiment(),
            run_name=self.record.curriculum.name,
            tags={"ppt.kind": "curriculum", KEY_TAG: key},
        )
        self._remember(run_id=run.info.run_id)
        return run.info.run_id

    def _remember(self, **fact: str) -> None:
        with replacing(self.folder / STATE_FILE) as temporary:
            temporary.write_text(json.dumps({**fact, **self._state}, indent=2))

    def _with_key(self, key: str) -> str | None:
        """Return the id of the run that was created with a key, or None if there is none."""
        if not re.fullmatch("[0-9a-f]{32}", key):
            return None
        found = self.client.search_runs([self._experiment()], f"tags.`{KEY_TAG}` = '{key}'")
        return found[0].info.run_id if found else None

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


def in_a_line(error: BaseException) -> str:
    """Return the message of an error as one line, which is cut at 200 characters."""
    return " ".join(str(error).split())[:200]


@contextmanager
def needed(uri: str) -> Iterator[None]:
    """Raise ConfigError in the block if MLflow fails there."""
    try:
        yield
    except _failures() as error:
        raise ConfigError(
            f"MLflow at {uri} fails: {in_a_line(error)}: run the command again when it answers, "
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
    return os.environ.get("MLFLOW_TRACKING_URI") or own_uri(folder)


def logged_run(folder: str | Path) -> tuple[str, str]:
    """Return the address of the tracking server of a run's folder, and the id of its MLflow run.

    Raises ConfigError if the folder does not tell them.
    """
    path = Path(folder) / STATE_FILE
    try:
        state = json.loads(path.read_text())
        uri, run_id = str(state["tracking_uri"]), str(state["run_id"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path} does not tell the MLflow run of {str(folder)!r} ({in_a_line(error)}): "
            "give the folder of a finished run"
        ) from None
    return (own_uri(folder) if uri == OWN else uri), run_id


def own_uri(folder: str | Path) -> str:
    """Return the address of the SQLite file in a run's folder; its path is quoted as in a URL."""
    return f"{SQLITE}{quote(str(Path(folder).resolve()))}/{OWN}"


def check_tracking(folder: str | Path) -> str:
    """Check that the tracking server can be written to, before any work begins.

    Returns the address. Raises ConfigError, which says what to do, if MLflow does not take the
    address or if nothing answers there.
    """
    uri = tracking_uri(folder)
    if uri == own_uri(folder):
        return uri  # the folder is that of the run, which is checked with the store
    try:
        client = quiet_client(uri)
        client.search_experiments(max_results=1)
        if found := client.get_experiment_by_name(EXPERIMENT):
            _check_lives(found)
    except ConfigError:
        raise
    except Exception as error:  # each kind of store has its own
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={uri} cannot be used: {said[:300]} Give a server "
            "(http://HOST:5000) or a database (sqlite:///FILE.db), or unset it to write into "
            "the run's folder"
        ) from None
    return uri


def _check_lives(found: Experiment) -> None:
    """Raise ConfigError if an experiment was deleted, because MLflow refuses to log into it."""
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"MLflow's experiment {found.name!r} was deleted: restore it with `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`, or remove it with `mlflow gc`"
        )


def _source_tags() -> dict[str, str]:
    """Return who runs which program, with its version and, in a checkout of ppt, its commit."""
    from mlflow.tracking.context.registry import resolve_tags
    from mlflow.utils.git_utils import get_git_commit
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

    tags = {name: value for name, value in resolve_tags().items() if name != MLFLOW_GIT_COMMIT}
    if (Path(ppt.__file__).parents[1] / ".git").exists():
        tags[MLFLOW_GIT_COMMIT] = get_git_commit(ppt.__file__) or ""
    return {
        **{name: value for name, value in tags.items() if value},
        "ppt.version": ppt.__version__,
    }


def _database(uri: str) -> Path:
    """Return the file of an SQLite database by its address."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0])).resolve()


_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""The columns of MLflow's tables that hold addresses of artifacts."""


def move_artifacts(uri: str) -> None:
    """Let an SQLite database name the artifacts beside it where they lie now, if it was moved.

    MLflow stores absolute addresses of artifacts, and has no means to change them.
    """
    if not uri.startswith(SQLITE) or not (database := _database(uri)).is_file():
        return
    here = (database.parent / ARTIFACTS).as_uri()
    with closing(sqlite3.connect(database)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone():
            return  # nothing is logged yet
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        found = connection.execute(query, (EXPERIMENT,)).fetchone()
        if found is None or found[0] == here or not found[0].endswith(f"/{ARTIFACTS}"):
            return
        for table, column in _PLACES:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE substr({column}, 1, ?) = ?",
                (here, len(found[0]) + 1, len(found[0]), found[0]),
            )


def _stage_of(curriculum: Curriculum, name: str) -> Stage:
    """Return the stage that a training belongs to; a round's training is called <stage>.<round>."""
    return curriculum.stages.get(name) or curriculum.stages[name.rpartition(".")[0]]


def experiment(client: MlflowClient, uri: str) -> str:
    """Return the id of the MLflow experiment `ppt`, which is created if it does not exist.

    With an SQLite store, the artifacts are kept in a folder beside the database.
    """
    if found := client.get_experiment_by_name(EXPERIMENT):
        _check_lives(found)
        if KIND_TAG not in found.tags:
            client.set_experiment_tag(found.experiment_id, KIND_TAG, "custom_model_development")
        return found.experiment_id
    is_file = uri.startswith(SQLITE)
    location = (_database(uri).parent / ARTIFACTS).as_uri() if is_file else None
    tags = {KIND_TAG: "custom_model_development"}
    return client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags)


def runs_page(uri: str) -> str:
    """Return the path of the page with our runs on MLflow's server; "/" if MLflow fails.

    The page that the server shows first is one for generative models.
    """
    try:
        found = quiet_client(uri).get_experiment_by_name(EXPERIMENT)
    except _failures():
        return "/"
    return (
        f"/#/experiments/{found.experiment_id}/runs?workflowType=machine_learning" if found else "/"
    )


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
    if not uri.startswith(SQLITE):
        return MlflowClient(uri)
    path = _database(uri)
    # MLflow tries a damaged file for minutes, and two processes may not make its tables at once.
    with locked_file(path.with_name(f"{path.name}.lock")):
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")
        client = MlflowClient(uri)
    _remove_quoted(uri)
    return client


def _remove_quoted(uri: str) -> None:
    """Remove the empty folders that MLflow makes of the quoted path of a database, and leaves."""
    quoted = uri.removeprefix(SQLITE).rpartition("/")[0]
    if uri.startswith(SQLITE) and quoted != unquote(quoted):
        with suppress(OSError):
            os.removedirs(quoted)


@contextmanager
def tracked_at(uri: str) -> Iterator[None]:
    """Let those functions of MLflow that take no address use this one within the block."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
        _remove_quoted(uri)


def system_metrics(run_id: str, uri: str) -> SystemMetricsMonitor | None:
    """Start to log the use of this machine's CPUs, memory, disks, network and GPUs into a run.

    Returns None unless MLflow's variable MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING asks for it.
    """
    from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING

    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return None
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


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

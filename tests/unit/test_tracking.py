"""MLflow: what is logged, that going on logs nothing twice, how runs end."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Thread
from typing import Any

import pytest
from common import PATIENCE
from mlflow import MlflowClient
from mlflow.entities import Run
from run_record import STAGES, build_record, curriculum
from werkzeug.serving import make_server

import ppt
from ppt.config import ConfigError
from ppt.jobs.common import say_mlflow
from ppt.report.gallery import stage_panels
from ppt.tracking.mlflow_runs import Tracker, check_tracking, end_running_below, own_uri
from ppt.tracking.record import Chosen, RunRecord


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return build_record(tmp_path_factory.mktemp("runs"), num_pictures=3)


@pytest.fixture(autouse=True)
def default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def log_all(record: RunRecord, stages: int = len(STAGES)) -> None:
    """What the curriculum's driver does."""
    with Tracker(record) as tracker:
        tracker.log_data()
        for stage in record.stages[:stages]:
            with tracker.stage(stage.name) as on_epoch:
                for losses in stage.history:
                    on_epoch(losses)
                tracker.finish_stage(stage, partial(stage_panels, record, stage))
        tracker.log_files([Path(record.folder) / "mlflow-run.json"])


def runs_of(record: RunRecord) -> tuple[MlflowClient, Run, dict[str, Run]]:
    """The parent and its nested runs by name."""
    state = state_of(record)
    client = MlflowClient(state["tracking_uri"])
    parent = client.get_run(state["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    return client, parent, {run.info.run_name: run for run in children}


def state_of(record: RunRecord) -> dict[str, str]:
    """The state with the address at which the runs are found."""
    state = json.loads((Path(record.folder) / "mlflow-run.json").read_text())
    own = state["tracking_uri"] == "mlflow.db"
    return {**state, "tracking_uri": own_uri(record.folder)} if own else state


def everything(record: RunRecord) -> dict[str, object]:
    """All points of all metrics, parameters and files of all runs."""
    client, parent, children = runs_of(record)
    found: dict[str, object] = {}
    for run in [parent, *children.values()]:
        for name in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, name)
            found[f"{run.info.run_name}/{name}"] = [(p.step, p.value) for p in points]
        found[f"{run.info.run_name}/params"] = run.data.params
        found[f"{run.info.run_name}/files"] = sorted(
            file.path
            for folder in ("checkpoint", "panels")
            for file in client.list_artifacts(run.info.run_id, folder)
        )
    return found


@pytest.fixture(scope="module")
def logged(record: RunRecord) -> RunRecord:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        log_all(record)
    return record


def test_parent_and_nested_runs(logged: RunRecord) -> None:
    client, parent, children = runs_of(logged)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["stages.ris_joint.num_epochs"] == "2"
    assert parent.data.params["seed"] == "7"
    files = [file.path for file in client.list_artifacts(parent.info.run_id)]
    assert files == ["digests.json", "mlflow-run.json"]
    assert not [tag for tag in parent.data.tags if tag.startswith("digest.")]
    best = logged.baselines["clip_sam_best"].metrics
    assert parent.data.metrics["clip_sam_best/mIoU"] == pytest.approx(best["mIoU"])
    curve = client.get_metric_history(parent.info.run_id, "mIoU")
    assert [p.value for p in curve] == pytest.approx([s.metrics["mIoU"] for s in logged.stages])
    assert set(children) == set(STAGES)
    for stage in logged.stages:
        run = children[stage.name]
        assert run.info.status == "FINISHED"
        assert run.data.params["num_epochs"] == str(stage.num_epochs)
        assert run.data.tags["ppt.training.checkpoint"] == stage.checkpoint.digest
        assert run.data.metrics["P_at_0.5"] == pytest.approx(stage.metrics["P@0.5"])
        losses = client.get_metric_history(run.info.run_id, "loss_mask")
        assert [(p.step, p.value) for p in losses] == [
            (e["epoch"], e["loss_mask"]) for e in stage.history
        ]


def test_data_digests_and_the_source_are_logged(logged: RunRecord, tmp_path: Path) -> None:
    client, parent, _ = runs_of(logged)
    inputs = {found.dataset.name: found for found in parent.inputs.dataset_inputs}
    assert set(inputs) == {"referring", "object_centric", "validation", "evaluation", "d_ref"} & {
        name for name, tables in logged.data.items() if tables.has("samples")
    }
    evaluation = inputs["evaluation"]
    assert evaluation.dataset.digest == logged.data["evaluation"].samples.digest[:36]
    assert json.loads(evaluation.dataset.source)["format"] == "toybox_scenes"
    assert [tag.value for tag in evaluation.tags] == ["evaluation"]
    assert [tag.value for tag in inputs["referring"].tags] == ["training"]
    path = client.download_artifacts(parent.info.run_id, "digests.json", str(tmp_path))
    digests = json.loads(Path(path).read_text())
    assert digests["labels.h"] == logged.data["referring"].labels.digest
    tags = parent.data.tags
    assert tags["ppt.version"] and tags["mlflow.user"] and tags["mlflow.source.name"]
    experiment = client.get_experiment(parent.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_checkpoints_and_panels_are_artifacts(logged: RunRecord, tmp_path: Path) -> None:
    client, _, children = runs_of(logged)
    run_id = children["ris_joint"].info.run_id
    path = client.download_artifacts(run_id, "checkpoint/generator.safetensors", str(tmp_path))
    assert Path(path).read_bytes() == b"ris_joint"
    panels = client.list_artifacts(run_id, "panels")
    assert panels and all(panel.path.endswith(".png") for panel in panels)
    assert (Path(logged.folder) / "mlartifacts").is_dir()


def test_same_again_logs_nothing_twice(logged: RunRecord) -> None:
    state, before = state_of(logged), everything(logged)
    log_all(logged)
    assert state_of(logged) == state
    assert everything(logged) == before


@pytest.fixture
def elsewhere(logged: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """A fresh run that is tracked in the database of `logged`: making one takes seconds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", state_of(logged)["tracking_uri"])
    return replace(logged, folder=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("trained", "error", "status"),
    [(False, KeyboardInterrupt, "KILLED"), (True, RuntimeError, "FAILED")],
    ids=["Ctrl-C in training", "a failure in evaluation"],
)
def test_goes_on_after_it_ended_early(
    elsewhere: RunRecord, trained: bool, error: type[BaseException], status: str
) -> None:
    stage = elsewhere.stages[0]
    with pytest.raises(error), Tracker(elsewhere) as tracker:
        with tracker.stage(stage.name) as on_epoch:
            on_epoch(stage.history[0])
            if not trained:
                raise error
        raise error
    _, parent, children = runs_of(elsewhere)
    assert parent.info.status == children["semantic_alignment"].info.status == status
    log_all(elsewhere, stages=1)
    _, again, children = runs_of(elsewhere)
    assert again.info.run_id == parent.info.run_id
    assert {run.info.status for run in [again, *children.values()]} == {"FINISHED"}
    points = everything(elsewhere)["semantic_alignment/loss"]
    assert points == [(e["epoch"], e["loss"]) for e in stage.history]


def test_the_page_with_the_runs(
    elsewhere: RunRecord, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The address of the experiment's runs, and before it the command that serves them."""
    log_all(elsewhere, stages=0)
    state = state_of(elsewhere)
    client = MlflowClient(state["tracking_uri"])
    number = client.get_run(state["run_id"]).info.experiment_id
    page = f"http://127.0.0.1:5000/#/experiments/{number}/runs?workflowType=machine_learning"
    say_mlflow(state["tracking_uri"])
    command, place = capsys.readouterr().err.splitlines()
    assert command.endswith(f"mlflow ui --backend-store-uri {shlex.quote(state['tracking_uri'])}")
    assert place == f"MLflow:  {page}"
    say_mlflow(f"sqlite:///{tmp_path}/new.db")  # there is no experiment
    assert capsys.readouterr().err.splitlines()[1] == "MLflow:  http://127.0.0.1:5000/"


def test_runs_can_be_sorted_by_the_stage_that_was_chosen(elsewhere: RunRecord) -> None:
    first, *others = elsewhere.stages
    scores = {first.name: 61.0, **{stage.name: 40.0 for stage in others}}
    with Tracker(elsewhere) as tracker:
        tracker.choose(Chosen(first.name, "pseudo_iou", scores))
    _, parent, _ = runs_of(elsewhere)
    assert parent.data.metrics["chosen/pseudo_iou"] == 61.0
    assert parent.data.metrics["chosen/mIoU"] == first.metrics["mIoU"]
    assert parent.data.tags["ppt.chosen"] == first.name


def test_the_use_of_the_machine_is_logged_if_asked_for(
    elsewhere: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logged() -> set[str]:
        return {name for name in runs_of(elsewhere)[1].data.metrics if name.startswith("system/")}

    log_all(elsewhere, stages=0)
    assert logged() == set()
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with Tracker(elsewhere):
        deadline = time.monotonic() + PATIENCE
        while not logged() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= logged()


def test_another_configuration_is_another_run(logged: RunRecord) -> None:
    root = Path(logged.curriculum.store)
    first = state_of(logged)
    kept = (Path(logged.folder) / "mlflow-run.json").read_text()
    with Tracker(replace(logged, curriculum=curriculum(root, seed=8))):
        pass
    assert state_of(logged)["run_id"] != first["run_id"]
    resources = {"num_actors": 3}  # how fast, not what
    (Path(logged.folder) / "mlflow-run.json").write_text(kept)
    with Tracker(replace(logged, curriculum=curriculum(root, resources=resources))):
        pass
    assert state_of(logged) == first


def test_a_folder_that_was_moved_is_written_where_it_lies(
    logged: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path has what a URL quotes; the same MLflow run goes on, and nothing is written back."""
    moved = replace(logged, folder=str(tmp_path / "a b?c%20d" / "run"))
    shutil.copytree(logged.folder, moved.folder)
    # A process that has logged at the former place remembers it; here another one is meant.
    cache = "mlflow.tracking._tracking_service.utils._artifact_repos_cache"
    monkeypatch.setattr(cache, OrderedDict())
    before = sorted(Path(logged.folder).rglob("*"))
    with Tracker(moved) as tracker:
        tracker.log_files([Path(moved.folder) / "mlflow-run.json"])
        (Path(moved.folder) / "new.txt").write_text("new")
        tracker.log_files([Path(moved.folder) / "new.txt"])
    assert state_of(moved)["run_id"] == state_of(logged)["run_id"]
    client, parent, children = runs_of(moved)
    assert set(children) == set(STAGES)
    artifacts = Path(moved.folder, "mlartifacts", parent.info.run_id, "artifacts")
    assert (artifacts / "new.txt").read_text() == "new"
    assert "new.txt" in [file.path for file in client.list_artifacts(parent.info.run_id)]
    assert client.list_artifacts(children["ris_joint"].info.run_id, "checkpoint")
    assert sorted(Path(logged.folder).rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a b?c%20d"]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("file:///tmp/mlruns", "maintenance mode"),
        ("./mlruns", "maintenance mode"),
        ("http://127.0.0.1:9", "127.0.0.1"),
        ("nothing://here", "unsupported URI"),
    ],
)
def test_an_address_that_mlflow_refuses_is_told_at_once(
    address: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(ConfigError, match=re.escape(f"MLFLOW_TRACKING_URI={address}")) as error:
        check_tracking(tmp_path)
    assert told in str(error.value) and "sqlite:///FILE.db" in str(error.value)
    assert "\n" not in str(error.value)


def test_tracking_uri_from_the_environment(elsewhere: RunRecord) -> None:
    log_all(elsewhere, stages=0)
    assert not (Path(elsewhere.folder) / "mlflow.db").exists()
    assert runs_of(elsewhere)[1].info.status == "FINISHED"


def test_a_lost_database_starts_a_new_run(elsewhere: RunRecord) -> None:
    log_all(elsewhere, stages=0)
    lost = {**state_of(elsewhere), "run_id": "0" * 32}
    (Path(elsewhere.folder) / "mlflow-run.json").write_text(json.dumps(lost))
    log_all(elsewhere, stages=0)
    assert state_of(elsewhere)["run_id"] != "0" * 32


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_state_starts_a_new_run(elsewhere: RunRecord, content: str) -> None:
    Path(elsewhere.folder).mkdir()
    (Path(elsewhere.folder) / "mlflow-run.json").write_text(content)
    with Tracker(elsewhere):
        pass
    assert runs_of(elsewhere)[1].info.status == "FINISHED"


def test_a_run_that_was_created_but_not_noted_goes_on(
    elsewhere: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    created, create = [], MlflowClient.create_run

    def killed(*arguments: Any, **options: Any) -> None:
        created.append(create(*arguments, **options).info.run_id)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(MlflowClient, "create_run", killed)
        Tracker(elsewhere).__enter__()
    assert "run_id" not in state_of(elsewhere)
    log_all(elsewhere, stages=0)
    assert [state_of(elsewhere)["run_id"]] == created
    log_all(elsewhere, stages=0)
    assert [state_of(elsewhere)["run_id"]] == created
    client = MlflowClient(state_of(elsewhere)["tracking_uri"])
    assert client.get_run(created[0]).info.status == "FINISHED"


def test_what_a_scheduler_stopped_does_not_run_for_ever(logged: RunRecord) -> None:
    client = MlflowClient(state_of(logged)["tracking_uri"])
    experiment = client.create_experiment("sweep")

    def begun(parent: str | None) -> str:
        tags = {"mlflow.parentRunId": parent} if parent else {}
        return client.create_run(experiment, tags=tags).info.run_id

    sweep = begun(None)
    done, stopped, of_another = begun(sweep), begun(sweep), begun(begun(None))
    stage = begun(stopped)
    client.set_terminated(done, "FINISHED")
    end_running_below(client, sweep)
    runs = (sweep, done, stopped, stage, of_another)
    assert [client.get_run(run).info.status for run in runs] == [
        "RUNNING",
        "FINISHED",
        "KILLED",
        "KILLED",
        "RUNNING",
    ]


# ---------------------------------------------------------------- a server that fails


class Server:
    """MLflow's own server in this process; it can be stopped and started with what it has."""

    def __init__(self, folder: Path) -> None:
        from mlflow.server import app

        self.app = app
        self.database = f"sqlite:///{folder}/server.db"
        MlflowClient(self.database).search_experiments()  # makes the tables, which takes its time
        self.kept = socket.socket()  # nobody else gets the port while the server is down
        self.kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.kept.bind(("127.0.0.1", 0))
        self.port = self.kept.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.server = make_server("127.0.0.1", self.port, self.app, threaded=True)
        Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path)
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", server.database)
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", f"file://{tmp_path}/artifacts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    # A server that is down refuses at once; one that is slow on a busy machine is not down.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE))
    yield server
    server.kept.close()


def log_with(record: RunRecord, told: list[str], before: dict[int, Callable[[], None]]) -> None:
    """Do what the curriculum's driver does; `before` is called before stages by their number."""
    with Tracker(record, tell=told.append) as tracker:
        tracker.log_data()
        for number, stage in enumerate(record.stages):
            with tracker.stage(stage.name) as on_epoch:
                for losses in stage.history:
                    on_epoch(losses)
                before.get(number, lambda: None)()
                tracker.finish_stage(stage, partial(stage_panels, record, stage))


def test_what_a_server_missed_is_logged_when_it_is_back(
    server: Server, logged: RunRecord, tmp_path: Path
) -> None:
    """It is down at the start, then there for a stage, down again, and there at the end."""
    record, told = replace(logged, folder=str(tmp_path / "run")), list[str]()
    log_with(record, told, {0: server.start, 1: server.stop, len(STAGES) - 1: server.start})
    assert len(told) == 2
    assert all(line.startswith(f"MLflow at {server.uri} fails, the run goes on") for line in told)
    client, parent, children = runs_of(record)
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert figures_of(record) == figures_of(logged)
    assert inputs_of(record) == inputs_of(logged) != {}
    assert parent.data.tags["ppt.version"] == ppt.__version__
    assert "digests.json" in [file.path for file in client.list_artifacts(parent.info.run_id)]
    server.stop()


def test_what_a_server_missed_is_logged_by_the_next_run(
    server: Server, logged: RunRecord, tmp_path: Path
) -> None:
    record, told = replace(logged, folder=str(tmp_path / "run")), list[str]()
    log_with(record, told, {})
    assert len(told) == 2
    assert told[1] == "MLflow: what is missing there is logged when the command is run again"
    server.start()
    told.clear()
    log_with(record, told, {1: server.stop})
    assert len(told) == 2
    server.start()
    told.clear()
    log_with(record, told, {})
    assert told == []
    assert figures_of(record) == figures_of(logged)
    assert inputs_of(record) == inputs_of(logged)
    server.stop()


def figures_of(record: RunRecord) -> dict[str, object]:
    """What is logged of a run but for the names of files."""
    return {key: value for key, value in everything(record).items() if "params" not in key}


def inputs_of(record: RunRecord) -> dict[str, str]:
    """The digest of each data set that is logged, by its name."""
    _, parent, _ = runs_of(record)
    return {found.dataset.name: found.dataset.digest for found in parent.inputs.dataset_inputs}


def test_a_database_that_is_damaged(
    logged: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "mlflow.db", list[str]()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    path.write_bytes(b"no database" * 100)
    record = replace(logged, folder=str(tmp_path / "run"))
    log_with(record, told, {})
    assert len(told) == 2
    assert "file is not a database" in told[0]
    path.unlink()
    log_with(record, told, {})
    assert len(told) == 2
    assert figures_of(record) == figures_of(logged)


def test_two_processes_that_make_the_database_at_once(tmp_path: Path) -> None:
    code = "import sys; from ppt.tracking.mlflow_runs import quiet_client as q; "
    code += "sys.stdin.readline(); q(sys.argv[1])"
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/mlflow.db"]
    both = [Popen(command, stdin=PIPE, stderr=PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told

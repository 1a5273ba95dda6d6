"""A run's folder knows how it was trained, wherever it lies; near names are suggested."""

from __future__ import annotations

import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from common import DATA, QUICKSTART
from typer.testing import CliRunner

from ppt.config import ConfigError, load_curriculum
from ppt.curriculum.run import check_outputs
from ppt.jobs.cli import app
from ppt.jobs.common import load_trained
from ppt.serving.mlflow_model import register_model
from ppt.serving.stored_checkpoint import open_checkpoint
from ppt.store.nodes import Store
from ppt.tracking.mlflow_runs import needed, tracked_at
from ppt.tracking.record import RunRecord
from ppt.tracking.summary import write_curriculum


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of the quickstart that was trained with overrides, in ./runs."""
    monkeypatch.chdir(tmp_path)
    curriculum = load_curriculum("quickstart", ["seed=7", "labels.merge_iou=0.5"])
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    (tmp_path / "runs" / "store").mkdir()
    write_curriculum(RunRecord(curriculum, str(folder)))
    return folder


def test_the_overrides_of_the_training_need_not_be_given(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curriculum, folder = load_trained(Path("quickstart"), None)
    assert (curriculum.seed, curriculum.labels.merge_iou) == (7, 0.5)
    assert folder.path == str(trained)
    assert "seed=7, labels.merge_iou=0.5" in capsys.readouterr().err
    by_folder, _ = load_trained(Path("runs/quickstart"), None)
    assert by_folder == curriculum.model_copy(update={"store": str(trained.parent)})
    again, _ = load_trained(Path("quickstart"), ["seed=7", "labels.merge_iou=0.5"])
    assert again == curriculum
    assert capsys.readouterr().err == ""  # nothing differs
    changed, _ = load_trained(Path("quickstart"), ["seed=8"])
    assert (changed.seed, changed.labels.merge_iou) == (8, 0.5)


def test_a_curriculum_that_is_not_whole_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text('picture,expression,polygon\na.jpg,a dog,"[[0,0,9,0,9,9]]"\n')
    table = "{format: table, path: " + str(tmp_path / "t.csv") + "}"
    roles = [f"data.{role}={table}" for role in ("referring", "validation", "evaluation")]
    objects = f"data.object_centric.root={DATA / 'imagenet-sample'}"
    curriculum = load_curriculum("photos", [*roles, objects])
    folder = tmp_path / "runs" / curriculum.name
    folder.mkdir(parents=True)
    write_curriculum(RunRecord(curriculum, str(folder)))
    loaded, _ = load_trained(Path("photos"), None)
    assert loaded.data == curriculum.data
    with pytest.raises(ConfigError, match="data.referring.root is missing"):
        load_trained(Path("photos"), ["name=other"])


def test_a_store_that_was_moved_with_its_runs(trained: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "runs", tmp_path / "there")
    curriculum, folder = load_trained(tmp_path / "there" / "quickstart", None)
    assert curriculum.store == str(tmp_path / "there")
    assert folder.path == str(tmp_path / "there" / "quickstart")


def test_a_folder_that_was_moved_away_from_its_store(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "papers here" / "best?"
    shutil.move(trained, moved)
    curriculum, folder = load_trained(moved, None)
    assert (curriculum.store, curriculum.name) == (str(tmp_path / "runs"), "quickstart")
    assert folder.path == str(moved)
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(ConfigError, match="needs the tables and checkpoints of its store"):
        load_trained(moved, None)


def test_a_checkpoint_is_found_from_a_moved_folder(trained: Path, tmp_path: Path) -> None:
    digests = {"checkpoints.first": "abc"}
    summary = {"stages": [{"name": "first"}], "digests": digests}
    (trained / "summary.json").write_text(json.dumps(summary))
    moved = tmp_path / "elsewhere"
    shutil.move(trained, moved)
    with pytest.raises(ConfigError) as error:
        open_checkpoint(moved)
    needed = "store/checkpoints/abc"
    for place in (tmp_path, tmp_path / "runs"):
        assert str(place / needed) in str(error.value)
    (tmp_path / "runs" / needed).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"runs/store/checkpoints/abc' has no generator"):
        open_checkpoint(moved)


@pytest.mark.parametrize(
    ("arguments", "hints"),
    [
        (
            [
                "config",
                "quickstart",
                "stages.semantic_alignmnt.num_epochs=2",
                "stages.ris_joint.sources.d_rf=1",
                "stages.ris_joint.kind=standrd",
                "labels.chunker=spcy",
                "data.referring.format=toybox_scene",
                "training.learningrate=1",
            ],
            "semantic_alignment d_ref standard spacy toybox_scenes training.learning_rate",
        ),
        (["evaluate", "quickstart", "--stage", "ris_jont"], "ris_joint"),
        (["select", "quickstart", "--after", "ris_jont"], "ris_joint"),
        (["train", "quickstart", "--local", "--again", "lable"], "label"),
        (["submit", "trian", "quickstart"], "train"),
    ],
)
def test_near_names_are_suggested_for_all_mistakes_at_once(
    arguments: list[str], hints: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] in ("evaluate", "select"):
        arguments = [*arguments, "--local"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    for name in hints.split():
        assert f"did you mean {name}?" in result.output


def test_the_wrong_part_of_a_run_is_told_with_the_right_one(trained: Path) -> None:
    (trained / "report.html").write_text("<p>" * 20_000)
    for given in (trained, trained / "report.html"):
        with pytest.raises(ConfigError, match=rf"of a run: give .*{trained}/curriculum.yaml"):
            load_curriculum(given)
    with pytest.raises(ConfigError, match=rf"html': it is a file of a run: .*, '{trained}'$"):
        load_trained(trained / "report.html", [])


def test_a_file_in_the_place_of_a_runs_folder_is_told_before_work(tmp_path: Path) -> None:
    (tmp_path / "small").touch()
    with pytest.raises(ConfigError, match=rf"name: .*cannot be made, a file .* '{tmp_path}/small'"):
        check_outputs(Store(str(tmp_path)), str(tmp_path / "small"))
    check_outputs(Store(str(tmp_path)), None)


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_without_a_checkpoint_the_runs_are_listed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "summary.json").write_text("{}")
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 2
    told = " ".join(result.output.split())
    assert "give --checkpoint RUN" in told and "there are the runs mine" in told


@pytest.mark.parametrize("name", ["a/b", "a:b", " ", ".."])
def test_a_registered_model_that_mlflow_cannot_name(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tmp_path), "--register", name])
    assert result.exit_code == 2 and f"--register: {name!r} is no name of a model" in result.output


class Refusing(BaseHTTPRequestHandler):
    """An MLflow server that takes no registered model, and says why by `code`."""

    code = "INVALID_PARAMETER_VALUE"

    def do_POST(self) -> None:
        self.send_response(400)
        self.end_headers()
        told = {"error_code": self.code, "message": "names have three parts"}
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_name_that_only_the_server_of_mlflow_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ConfigError) as caught, needed(uri), tracked_at(uri):
            register_model("models:/m-1", "my model", uri)
        assert str(caught.value).startswith(
            f"--register: MLflow at {uri} does not take 'my model' as the name of a model "
        )
        assert "names have three parts): give another name" in str(caught.value)
        monkeypatch.setattr(Refusing, "code", "PERMISSION_DENIED")  # this is not the name's fault
        with pytest.raises(ConfigError) as caught, needed(uri), tracked_at(uri):
            register_model("models:/m-1", "my model", uri)
        assert str(caught.value).startswith(f"MLflow at {uri} fails: PERMISSION_DENIED")
        server.shutdown()


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "quickstart", "--local"),
        ("evaluate", "quickstart", "--local"),
        ("evaluate", "quickstart", "--stage", "ris_joint", "--local"),
        ("select", "quickstart", "--after", "semantic_alignment", "--local"),
        ("export", "runs/quickstart", "--out", "model"),
        ("predict", "a.png", "a car", "--checkpoint", "runs/quickstart"),
        ("gc", "runs", "--delete"),
        ("verify", "runs"),
        ("show", "abc"),
    ],
    ids=lambda arguments: " ".join(arguments[:1]),
)
def test_a_command_that_reads_leaves_nothing_where_nothing_is_trained(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2 and "error: " in result.output, result.output
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written_to_is_told_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"store: .*file/runs' cannot be written to"):
        check_outputs(Store(str(tmp_path / "file" / "runs")), str(tmp_path))
    check_outputs(Store(str(tmp_path / "runs")), str(tmp_path / "runs" / "a"))
    assert [*(tmp_path / "runs").iterdir()] == []  # nothing is left of the check


def test_train_tells_a_tracking_address_before_it_encodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    result = CliRunner().invoke(app, ["train", str(QUICKSTART), "--local", f"store={tmp_path}"])
    assert result.exit_code == 2
    assert "cannot be used" in result.output and "prepare" not in result.output
    assert not (tmp_path / "store").exists()


@pytest.fixture
def store(trained: Path) -> Path:
    """The store of `trained`, with a checkpoint and the summary that names it."""
    checkpoint = trained.parent / "store" / "checkpoints" / "0123456789abcdef"
    checkpoint.mkdir(parents=True)
    for name in ("generator.safetensors", "manifest.json"):
        (checkpoint / name).touch()
    (trained / "summary.json").write_text("{}")
    Path("mine.yaml").write_text("base: quickstart\n")
    return trained.parent


CHECKPOINT = "runs/store/checkpoints/0123456789abcdef"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("quickstart", "is a curriculum: give the run's folder, 'runs/quickstart'"),
        (
            "mine.yaml",
            "is a curriculum: give the run's folder, 'runs/mine', which `ppt train` makes",
        ),
        ("runs/quickstart/summary.json", "is a file of a run: give the run's folder, 'runs/qui"),
        ("runs/quickstart/curriculum.yaml", "is a file of a run: give the run's folder, 'runs/qu"),
        ("0123456789abcdef", f"in 'runs/store/checkpoints': give its folder, '{CHECKPOINT}'"),
        (f"{CHECKPOINT}/manifest.json", f"a file of a checkpoint: give its folder, '{CHECKPOINT}'"),
        ("runs/nothere", "is no folder; in '.*/runs' there are the runs quickstart"),
        ("nothere", "'nothere' is no folder$"),
    ],
)
def test_what_is_no_checkpoint_is_told_with_what_to_give(
    store: Path, given: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        open_checkpoint(given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (CHECKPOINT, "is a checkpoint: give the run's folder$"),
        ("0123", "is the digest of a node in 'runs/store/checkpoints': give the run's folder$"),
        ("runs/quickstart/summary.json", "is a file of a run: give the run's folder, 'runs/quic"),
        ("copy/nothere", r"no run and no curriculum at 'copy/nothere': give the folder of a run"),
        ("runs", r"at 'runs': give .* or a curriculum; in 'runs' there are the runs quickstart"),
        ("quikstart", "no run and no curriculum at 'quikstart': did you mean quickstart?"),
    ],
)
def test_what_is_no_run_is_told_with_what_to_give(store: Path, given: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_trained(Path(given), [])


@pytest.mark.parametrize("command", ["verify", "gc"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("runs/quickstart", "it is the folder of a run: give its store, 'runs'"),
        ("quickstart", "it is a curriculum: give its store, 'runs'"),
        ("nothere", "no store at 'nothere': give the `store` of a curriculum"),
    ],
)
def test_what_is_no_store_is_told_with_what_to_give(
    store: Path, command: str, given: str, told: str
) -> None:
    result = CliRunner().invoke(app, [command, given])
    assert result.exit_code == 2 and told in " ".join(result.output.split())


def test_the_folder_of_a_damaged_checkpoint_is_named(trained: Path, store: Path) -> None:
    digests = {"checkpoints.first": "0123456789abcdef"}
    summary = {"stages": [{"name": "first"}], "digests": digests}
    (trained / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match=f"is empty: remove .* {Path(CHECKPOINT).absolute()} and"):
        open_checkpoint(trained)
    Path(CHECKPOINT, "generator.safetensors").unlink()
    told = f"has no generator.safetensors: remove .* {Path(CHECKPOINT).absolute()} and run `ppt tr"
    with pytest.raises(ConfigError, match=told):
        open_checkpoint(trained)

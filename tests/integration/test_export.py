"""A trained stage as a folder that travels: from a folder, a URL and MLflow, the same masks."""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from common import PATIENCE, ROOT
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from ppt.config import ConfigError
from ppt.images.pictures import encode_picture
from ppt.jobs.cli import app
from ppt.serving.predictor import Predictor
from ppt.serving.stored_checkpoint import open_checkpoint
from ppt.steps.runner import forget_read
from ppt.store.checksums import seal, unseal
from ppt.tracking.mlflow_runs import logged_run
from ppt.tracking.record import RunRecord

SCENE = ROOT / "docs" / "scene.png"
TEXTS = ["the mushroom on the left", "the green boat"]


@pytest.fixture(scope="module", autouse=True)
def own_database() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


def ppt(*arguments: object) -> str:
    """What a command tells, after it has succeeded."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(*arguments: object) -> str:
    """What a command tells about the user's mistake."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def answers(predictor: Predictor) -> list[dict[str, Any]]:
    return [prediction.as_dict() for prediction in predictor.predict(SCENE, TEXTS)]


@pytest.fixture(scope="module")
def run(tiny_run: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny run, in a copy of its store."""
    runs = tmp_path_factory.mktemp("export") / "runs"
    shutil.copytree(tiny_run.curriculum.store, runs)
    return runs / "tiny"


@pytest.fixture(scope="module")
def expected(run: Path) -> list[dict[str, Any]]:
    """What the predictor of the run tells about `TEXTS`."""
    return answers(Predictor.from_checkpoint(run))


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    out = run.parents[1] / "model"
    ppt("export", run, "--out", out)
    return out


def test_a_folder_that_travelled_predicts_as_the_run_does(
    run: Path, folder: Path, expected: list[dict[str, Any]]
) -> None:
    assert answers(Predictor.from_pretrained(folder)) == expected
    names = ["README.md", "generator.safetensors", "manifest.json", "metadata.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in ("README.md", "manifest.json", "metadata.json"):
        assert str(run.parents[1]) not in (folder / name).read_text(), name


def test_the_command_predicts_with_a_folder(run: Path, folder: Path, tmp_path: Path) -> None:
    for name, checkpoint in (("run", run), ("folder", folder)):
        ppt("predict", SCENE, *TEXTS, "--checkpoint", checkpoint, "--out", tmp_path / name)
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("run", "folder")
    ]
    assert len(written[0]) > 3 * len(TEXTS) and written[0] == written[1]


def test_the_card_tells_data_stages_figures_limits_and_licence(
    tiny_run: RunRecord, folder: Path
) -> None:
    card = (folder / "README.md").read_text()
    for words in ("16 | 32 | num_pictures=16", "## Limits", "no use on photographs", "Apache-2.0"):
        assert words in card
    for stage in tiny_run.stages:
        assert f"{stage.name} | h_sem" in card
        name = f"**{stage.name}**" if stage.name == "ris_joint" else stage.name
        assert f"| {name} | {stage.metrics['mIoU']:.1f} | {stage.metrics['oIoU']:.1f}" in card
    for fingerprint in open_checkpoint(folder).encoders.values():
        assert fingerprint in card
    assert f"| {tiny_run.baselines['clip_sam_published'].metrics['mIoU']:.1f} |" in card


def test_what_is_damaged_is_not_exported(run: Path, tmp_path: Path) -> None:
    """The new folder would have right checksums of it."""
    checkpoint = open_checkpoint(run).folder
    for name in ("metadata.json", "generator.safetensors"):
        path, out = checkpoint / name, tmp_path / "out"
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        forget_read()
        assert f"{path} is damaged" in refused("export", run, "--out", out)
        assert not list(out.glob("*"))
        path.write_bytes(whole)


def test_a_stage_can_be_named(run: Path, tmp_path: Path) -> None:
    ppt("export", run, "--stage", "semantic_alignment", "--out", tmp_path / "first")
    first = open_checkpoint(run, "semantic_alignment")
    assert open_checkpoint(tmp_path / "first").digest == first.digest
    assert open_checkpoint(tmp_path / "first").calibration == first.calibration
    assert first.calibration != open_checkpoint(run).calibration


def test_weights_are_found_beside_the_model(run: Path, tmp_path: Path) -> None:
    """The manifest has the names of files and no paths; in the folder the names are found."""
    shutil.copytree(run.parent, tmp_path / "runs")
    copied = tmp_path / "runs" / "tiny"
    manifest = open_checkpoint(copied).folder / "manifest.json"
    content = unseal(manifest.read_bytes())
    content["model"]["sam"] |= {"name": "vit_b", "weights": str(tmp_path / "mine.pth")}
    content["model"]["clip"] |= {"name": "ViT-B-32", "weights": "random"}
    manifest.write_bytes(seal(content))
    (tmp_path / "mine.pth").touch()
    ppt("export", copied, "--out", tmp_path / "model")
    model = open_checkpoint(tmp_path / "model").model
    assert (model.sam.weights, model.clip.weights) == ("mine.pth", "random")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| sam | vit_b | mine.pth |" in card and "license: other" in card
    (tmp_path / "mine.pth").rename(tmp_path / "model" / "mine.pth")
    assert open_checkpoint(tmp_path / "model").model.sam.weights == f"{tmp_path}/model/mine.pth"


def test_what_cannot_be_exported(run: Path, folder: Path, tmp_path: Path) -> None:
    assert "give --out FOLDER, --mlflow or --register" in refused("export", run)
    before = (folder / "manifest.json").read_bytes()
    assert "is there already" in refused("export", run, "--out", folder)
    assert (folder / "manifest.json").read_bytes() == before
    assert "is no folder" in refused("export", tmp_path / "none", "--out", tmp_path / "x")
    checkpoint = open_checkpoint(run).folder
    told = refused("export", checkpoint, "--out", tmp_path / "x")
    assert "the folder of a finished run" in told
    assert "ris_jont" in refused("export", run, "--stage", "ris_jont", "--mlflow")
    assert not (tmp_path / "x").exists()
    assert "out: '/proc/x' cannot be written to" in refused("export", run, "--out", "/proc/x")


# ---------------------------------------------------------------- from a URL


@pytest.fixture
def served(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The address of a copy of the folder, the copy, and the paths that were asked for."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            if self.command == "GET":
                asked.append(self.path.rpartition("/")[2])

    shutil.copytree(folder, tmp_path / "site" / "model")
    handler = functools.partial(Handler, directory=str(tmp_path / "site"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/model", tmp_path / "site" / "model", asked
    server.shutdown()
    server.server_close()


def test_a_url_is_fetched_once(served: Any, expected: list[dict[str, Any]]) -> None:
    url, _, asked = served
    assert answers(Predictor.from_pretrained(url)) == expected
    assert sorted(asked) == ["generator.safetensors", "manifest.json", "metadata.json"]
    asked.clear()
    assert answers(Predictor.from_pretrained(f"{url}/")) == expected
    assert asked == ["manifest.json"]


def test_a_file_that_is_not_what_the_manifest_tells_is_refused(
    served: Any, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    url, site, _ = served
    whole = (site / "generator.safetensors").read_bytes()
    damaged = bytearray(whole)
    damaged[-3] ^= 1
    (site / "generator.safetensors").write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"generator.safetensors has not the SHA-256"):
        Predictor.from_pretrained(url)
    (site / "generator.safetensors").write_bytes(whole)
    assert answers(Predictor.from_pretrained(url)) == expected
    (kept,) = (tmp_path / "cache").rglob("generator.safetensors")
    kept.write_bytes(damaged)  # what is kept is compared too
    assert answers(Predictor.from_pretrained(url)) == expected
    (site / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be fetched.*`ppt export` wrote"):
        Predictor.from_pretrained(url)
    with pytest.raises(ConfigError, match="cannot be fetched: FileNotFoundError"):
        Predictor.from_pretrained(f"{url}/nothing")


# ---------------------------------------------------------------- MLflow


@pytest.fixture(scope="module")
def registered(run: Path) -> tuple[str, Path]:
    """The address of the database and the folder of the run, whose model is registered.

    The run was moved after that, and the model was registered once more at the new place.
    """
    moved = run.parents[1] / "a b?c%20d"
    shutil.copytree(run.parent, moved)
    assert "MLflow: models:/tiny/1" in ppt("export", moved / "tiny", "--register", "tiny")
    here = run.parents[1] / "moved"
    moved.rename(here)
    assert "MLflow: models:/tiny/2" in ppt("export", here / "tiny", "--register", "tiny")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert not list(here.parent.rglob("*%*"))  # of MLflow, which makes folders of quoted paths
    return logged_run(here / "tiny")[0], here / "tiny"


def rows(*texts: str) -> pd.DataFrame:
    return pd.DataFrame({"picture": [SCENE.read_bytes()] * len(texts), "expression": texts})


def without_path(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key != "picture"} for row in found]


def test_the_logged_model_predicts_as_the_run_does(
    registered: tuple[str, Path],
    expected: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, _ = registered
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for version in (1, 2):
        model = mlflow.pyfunc.load_model(f"models:/tiny/{version}")
        assert model.predict(rows(*TEXTS)) == without_path(expected)
    assert [column.name for column in model.metadata.signature.inputs] == ["picture", "expression"]
    assert model.predict(model.input_example)[0]["mask"]["size"] == [96, 96]
    mixed = model.predict(pd.concat([rows(TEXTS[0]), model.input_example, rows(TEXTS[1])]))
    assert [mixed[row]["mask"] for row in (0, 2)] == [row["mask"] for row in expected]
    with pytest.raises(MlflowException, match="row 2: expression '' has no word"):
        model.predict(pd.concat([model.input_example, rows("")]))
    photograph = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    foreign = pd.DataFrame({"picture": [encode_picture(photograph)], "expression": ["a car"]})
    with pytest.raises(MlflowException, match="row 1: .* is none of the embedded world"):
        model.predict(foreign)
    (forced,) = model.predict(foreign, params={"force": True})
    assert forced["mask"]["size"] == [64, 96]


def test_the_logged_model_belongs_to_its_run(registered: tuple[str, Path]) -> None:
    uri, run = registered
    client, run_id = MlflowClient(uri), logged_run(run)[1]
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    stage = json.loads((run / "summary.json").read_text())["stages"][-1]
    (experiment,) = client.search_experiments(filter_string="name = 'ppt'")
    models = client.search_logged_models([experiment.experiment_id])
    assert len(models) == 2
    for model in models:
        assert model.source_run_id == run_id
        assert model.tags["ppt.stage"] == "ris_joint"
        num_queries = open_checkpoint(run).model.point_generator.num_queries
        assert model.params["point_generator.num_queries"] == str(num_queries)
        metrics = {metric.key: metric.value for metric in model.metrics}
        assert metrics["mIoU"] == pytest.approx(stage["mIoU"])
        files = [Path(path) for path in Path(run / "mlartifacts").rglob("*")]
        assert not [path for path in files if path.suffix in (".pkl", ".pickle")]


def test_mlflow_serves_the_model(
    registered: tuple[str, Path], expected: list[dict[str, Any]]
) -> None:
    uri, _ = registered
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    serve = "models serve --model-uri models:/tiny/1 --env-manager local --host 127.0.0.1 --port"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *serve.split(), str(port)],
        env=environment,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server)
        picture = base64.b64encode(SCENE.read_bytes()).decode()
        records = [{"picture": picture, "expression": text} for text in TEXTS]

        def ask(records: list[dict[str, str]]) -> requests.Response:
            url = f"http://127.0.0.1:{port}/invocations"
            return requests.post(url, json={"dataframe_records": records}, timeout=PATIENCE)

        assert ask(records).json() == {"predictions": without_path(expected)}
        assert ask([{"picture": "AAAA", "expression": "a car"}]).status_code == 400
        assert ask([{"picture": picture}]).status_code == 400
    finally:
        os.killpg(server.pid, 15)
        server.wait(PATIENCE)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            requests.get(url, timeout=5).raise_for_status()
            return
        except requests.RequestException:
            time.sleep(0.2)
    pytest.fail(f"{url} does not answer")

"""A store behind an fsspec URL that is no local path, used by several processes."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import small

from ppt.pipeline.curriculum import run_curriculum
from ppt.pipeline.folder import RunFolder
from ppt.store import Store


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """fsspec's DirFileSystem: `bucket` means nothing to open() in any process."""
    remote = tmp_path / "remote"
    remote.mkdir()
    monkeypatch.chdir(
        tmp_path
    )  # where a path of the store would land that was taken for a local one
    return f"dir://bucket::file://{remote}"


def test_a_run_on_a_url_ends_as_on_a_folder(
    cluster: None, finished, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tempfile.gettempdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    copies = [Path(f"{temporary}/ppt-cache/{n.kind}/{n.digest}") for n in finished.nodes.values()]
    for copy in copies:  # of an earlier test run, in the workers' temporary folder
        shutil.rmtree(copy, ignore_errors=True)
    curriculum = small(url)
    record = run_curriculum(curriculum)
    assert {name: node.digest for name, node in record.nodes.items()} == {
        name: node.digest for name, node in finished.nodes.items()
    }
    assert [s.metrics for s in record.stages] == [s.metrics for s in finished.stages]

    here = tmp_path / "remote" / "bucket"
    assert {path.name for path in here.iterdir()} >= {"store", "small"}
    assert not (tmp_path / "bucket").exists()
    summary = json.loads((here / "small" / "summary.json").read_text())
    assert len(summary["stages"]) == len(finished.stages)
    assert (here / "small" / "report.html").stat().st_size > 10_000
    assert (here / "small" / "mlflow.db").exists()

    run_id = json.loads((here / "small" / "mlflow-run.json").read_text())["run_id"]
    again = run_curriculum(curriculum)  # nothing to do: the same MLflow run, from the URL
    assert json.loads((Path(again.folder) / "mlflow-run.json").read_text())["run_id"] == run_id


def test_a_runs_folder_comes_from_the_url_and_goes_back(url: str) -> None:
    store = Store(url)
    with RunFolder(store, "a") as folder:
        Path(folder.path, "deep").mkdir(parents=True)
        Path(folder.path, "deep", "x").write_text("1")
    Path(folder.path, "stale").write_text("of a run that the store knows nothing of")
    with RunFolder(Store(url), "a") as again:
        assert Path(again.path, "deep", "x").read_text() == "1"
        assert not Path(again.path, "stale").exists()
        Path(again.path, "deep", "x").write_text("2")
        again.publish()
        assert store.fs.cat_file("bucket/a/deep/x") == b"2"
    assert store.fs.find("bucket/a") == ["bucket/a/deep/x"]

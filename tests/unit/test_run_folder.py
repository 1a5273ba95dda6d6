"""A run's folder on a store behind a URL: fetched when the run starts, copied back when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppt.store.nodes import Store
from ppt.tracking.folder import RunFolder


def test_a_runs_folder_comes_from_the_url_and_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    url = f"dir://bucket::file://{tmp_path}/remote"
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

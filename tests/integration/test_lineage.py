"""`ppt show` tells from what a node was made, and `ppt gc` removes what no run needs."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from common import PATIENCE, here, nodes_of, run_here, small, tiny
from typer.testing import CliRunner

from ppt.config import Curriculum, Resources
from ppt.curriculum.finished import evaluate_curriculum
from ppt.curriculum.run import run_curriculum_again
from ppt.jobs.cli import app
from ppt.serving.predictor import Predictor
from ppt.steps.local_runner import LocalRunner
from ppt.steps.uses import USES, Noting, uses_of
from ppt.store.locks import LOCKS, in_use
from ppt.store.nodes import BucketOutput, Count, Node, Store
from ppt.tracking.record import RunRecord
from ppt.training.stage import epoch_node


@pytest.fixture
def curriculum(tiny_run: RunRecord, tmp_path: Path) -> Curriculum:
    """The tiny curriculum with a copy of its finished run and store."""
    shutil.copytree(tiny_run.curriculum.store, tmp_path / "runs")
    return tiny(tmp_path, tmp_path / "runs")


def ppt(*arguments: str) -> tuple[int, str, str]:
    """The exit code, the output and what is told, each line as one."""
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def contents(store: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(Path(store).rglob("*"))
        if path.is_file()
    }


def written(node: Node) -> Node:
    """A node with one bucket of three rows."""
    table = pa.table({"value": pa.array([1, 2, 3])})
    node.write_bucket(0, BucketOutput({"data": table}, {"rows": Count(5, 3, 2)}))
    return node


# ---------------------------------------------------------------- ppt show


def test_show_leads_back_to_the_raw_data(
    tiny_run: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppt.jobs.common.FILE_WIDTH", 5_000)
    store, nodes = tiny_run.curriculum.store, nodes_of(tiny_run)
    checkpoint = nodes["checkpoints.ris_joint"]
    code, told, _ = ppt("show", checkpoint.digest[:12].upper(), "--store", store)
    assert code == 0
    first, *lines = told.splitlines()
    version = checkpoint.made_from["version"]
    assert first.startswith(f"checkpoints {checkpoint.digest}, version {version}, ")
    for name in ("checkpoints.semantic_alignment", "labels.h", "labels.d_sem", "samples.referring"):
        assert any(f": {nodes[name].kind} {nodes[name].digest}" in line for line in lines)
    assert any("configuration: stage=ris_joint, kind=standard, " in line for line in lines)
    assert sum("training={" in line for line in lines) == 1  # a long value is told once
    assert any("stage=semantic_alignment, " in li and "training as above" in li for li in lines)
    samples = nodes["samples.referring"]
    (at,) = [n for n, line in enumerate(lines) if f"{samples.digest}, version" in line]
    told = " ".join(lines[at : at + 7])
    assert "pictures: 16 in, 16 out, 0 quarantined" in told
    assert "read from: format=toybox_scenes, num_pictures=16, " in told
    assert "buckets: 2" in told
    # What several nodes were made from is told in full once.
    assert sum(samples.digest in line and "(as above)" not in line for line in lines) == 1
    assert sum(samples.digest in line for line in lines) > 1


def test_show_says_what_is_wrong(curriculum: Curriculum) -> None:
    store = Store(curriculum.store)
    parent = store.node("samples", {"seed": 1}, buckets=1)
    child = written(store.node("labels", {"a": [1, "x"]}, {"samples": parent}, buckets=1))
    code, told, _ = ppt("show", child.digest, "--store", curriculum.store)
    assert (code, "unfinished: what it is made of" in told) == (0, True)
    child.write_manifest()
    code, told, _ = ppt("show", child.digest, "--store", curriculum.store)
    assert f"samples: a node {parent.digest}" in told
    assert "it is not in the store any more" in told
    assert 'configuration: a=[1, "x"]' in told
    assert "rows: 5 in, 3 out, 2 quarantined" in told
    Path(child.path("manifest.json")).write_text("{")
    code, told, _ = ppt("show", child.digest, "--store", curriculum.store)
    assert (code, "is cut short or damaged" in " ".join(told.split())) == (0, True)


def test_show_needs_a_digest_that_is_there(curriculum: Curriculum) -> None:
    digests = sorted(path.name for path in Path(curriculum.store, "store").glob("*/*"))
    first = next(a[0] for a in digests if sum(b[0] == a[0] for b in digests) > 1)
    for given, wanted in ((first, "nodes begin with"), ("xyz", "no node"), ("", "no node")):
        code, _, told = ppt("show", given, "--store", curriculum.store)
        assert code == 2
        assert wanted in told
    code, _, told = ppt("show", "ab", "--store", f"{curriculum.store}/nowhere")
    assert (code, "no store at" in told) == (2, True)


# ---------------------------------------------------------------- ppt gc


def test_a_run_predicts_reports_and_evaluates_after_gc(curriculum: Curriculum) -> None:
    store = Store(curriculum.store)
    before = contents(curriculum.store)
    record = run_here(curriculum)
    samples = nodes_of(record)["samples.referring"]
    child = written(store.node("labels", {"of": "nobody"}, {"samples": samples}, buckets=1))
    child.write_manifest()
    grandchild = written(store.node("results", {}, {"labels": child}, buckets=1))
    grandchild.write_manifest()
    begun = written(store.node("labels", {"of": "a run that goes on"}, buckets=2))
    interrupted, abandoned = (store.node("checkpoints", {"stage": s}) for s in "ab")
    store.fs.touch(f"{store.path}/{USES}/tiny/{interrupted.digest}")
    last, of_nobody = (epoch_node(training, 7) for training in (interrupted, abandoned))
    for epoch in (last, of_nobody):
        epoch.write_manifest(checksums={})
    with_more = contents(curriculum.store)

    code, table, told = ppt("gc", curriculum.store)
    assert (code, contents(curriculum.store)) == (0, with_more)
    assert f"not needed: results {grandchild.digest}" in told
    assert f"not needed: labels {child.digest}" in told
    assert f"not needed: epochs {of_nobody.digest}" in told
    assert told.index(grandchild.digest) < told.index(child.digest)
    assert "nothing was removed: --delete" in told
    assert "runs: tiny" in told
    assert table.count("\n") > 8

    code, _, told = ppt("gc", curriculum.store, "--delete")
    removed = child.digest, grandchild.digest, of_nobody.digest
    assert (code, told.count("removed: ")) == (0, len(removed))
    for path in contents(curriculum.store).keys() ^ with_more.keys():
        assert any(digest in path for digest in removed)
    assert begun.sizes() and last.is_complete()

    shutil.rmtree(begun.folder)
    last.remove()
    Predictor.from_checkpoint(Path(curriculum.store, "tiny"))
    run_here(curriculum, train=False)
    evaluate_curriculum(curriculum, here(curriculum))
    stored = {name: data for name, data in before.items() if name.startswith("store/")}
    after = contents(curriculum.store)
    assert {name: after.get(name) for name in stored} == stored


def test_a_run_that_was_moved_keeps_what_it_needs_until_it_is_forgotten(
    curriculum: Curriculum, tmp_path: Path
) -> None:
    other = small(curriculum.store, "name=other", "num_buckets=2", "data.referring.num_pictures=16")
    run_here(other, until="prepare")  # a run that has not come to its end
    home, store = Path(curriculum.store), Store(curriculum.store)
    noted = uses_of(store, "other")
    shutil.move(home / "tiny", tmp_path / "moved")
    before = contents(curriculum.store)
    code, _, told = ppt("gc", curriculum.store, "--delete")
    assert (code, "removed: labels" in told) == (0, False)
    for name in ("tiny", "other"):
        assert f"note: the run {name!r} has no folder here " in told
    assert contents(curriculum.store) == before

    (home / "other").mkdir()
    for given, wanted in (
        ("other", "remove "),
        ("tini", "did you mean tiny?"),
        ("nobody", "can be forgotten, are tiny, and those with a folder are other"),
    ):
        code, _, told = ppt("gc", curriculum.store, "--forget", given, "--delete")
        assert (code, wanted in told) == (2, True), told
    code, _, told = ppt("gc", curriculum.store, "--forget", "tiny")
    assert (code, "not needed: checkpoints" in told) == (0, True)
    assert contents(curriculum.store) == before
    code, _, told = ppt("gc", curriculum.store, "--forget", "tiny", "--delete")
    assert (code, "removed: checkpoints" in told) == (0, True)
    assert {path.name for path in home.glob("store/*/*")} == set(noted)
    assert {path.name for path in home.glob(f"{USES}/*")} == {"other"}


@pytest.mark.parametrize("command", ["gc", "again"])
def test_what_removes_waits_for_the_runs_at_work(curriculum: Curriculum, command: str) -> None:
    """Whatever a run has found complete stays until it ends."""
    store, ends = Store(curriculum.store), list[str]()
    unneeded = written(store.node("labels", {"of": "nobody"}, buckets=1))
    unneeded.write_manifest()
    before = contents(curriculum.store)

    def remove() -> None:
        if command == "gc":
            ends.append(str(ppt("gc", curriculum.store, "--delete")[0]))
        else:
            run_curriculum_again(curriculum, here(curriculum), "ris_joint")
            ends.append("0")

    thread = threading.Thread(target=remove)
    with in_use(store, lambda: None), in_use(store, lambda: None):
        thread.start()
        thread.join(1)
        assert thread.is_alive()
        found = contents(curriculum.store)
        assert {name: found.get(name) for name in before} == before
    thread.join(PATIENCE)
    assert ends == ["0"]
    assert contents(curriculum.store) != before
    assert not Path(curriculum.store, LOCKS, "in-use").exists()


def test_a_run_of_before_there_were_notes_keeps_what_its_summary_names(
    curriculum: Curriculum,
) -> None:
    shutil.rmtree(Path(curriculum.store, USES), ignore_errors=True)
    summary = json.loads(Path(curriculum.store, "tiny", "summary.json").read_text())
    code, _, _ = ppt("gc", curriculum.store, "--delete")
    assert code == 0
    left = {path.name for path in Path(curriculum.store, "store").glob("*/*")}
    assert left >= set(summary["digests"].values())


def test_gc_removes_nothing_where_it_cannot_know(curriculum: Curriculum, tmp_path: Path) -> None:
    home = Path(curriculum.store)
    before = contents(curriculum.store)
    summary = home / "tiny" / "summary.json"

    def refused(wanted: str) -> None:
        code, _, told = ppt("gc", curriculum.store, "--delete")
        assert (code, wanted in told) == (2, True), told

    summary.write_text("{")
    refused("damaged")
    summary.write_bytes(before["tiny/summary.json"])
    manifest = next(home.glob("store/labels/*/manifest.json"))
    manifest.write_text("")
    refused("is empty")
    manifest.write_bytes(before[str(manifest.relative_to(home))])
    assert contents(curriculum.store) == before
    shutil.rmtree(home / "tiny")
    shutil.rmtree(home / USES)
    refused("no run in")
    assert ppt("gc", str(tmp_path / "nowhere"))[0] == 2


def test_who_makes_anew_behind_a_url_is_warned(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store("memory://ppt-anew")
    for alone in (True, False):
        with Noting(LocalRunner(store, Resources()), "run", alone=alone):
            pass
        told = " ".join(capsys.readouterr().err.split())
        assert ("cannot be seen whether another command is at work" in told) == alone


def test_a_store_behind_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppt.jobs.common.FILE_WIDTH", 500)
    url = "memory://ppt-lineage"
    store = Store(url)
    used = written(store.node("samples", {"seed": 1}, buckets=1))
    child = written(store.node("labels", {}, {"samples": used}, buckets=1))
    other = written(store.node("labels", {"of": "nobody"}, {"samples": used}, buckets=1))
    for node in (used, child, other):
        node.write_manifest()
    store.fs.pipe_file(f"{store.path}/{USES}/run/{child.digest}", b"labels")
    code, told, _ = ppt("show", child.digest, "--store", url)
    assert (code, f"samples: samples {used.digest}" in told) == (0, True)
    code, _, told = ppt("gc", url)
    assert (code, f"not needed: labels {other.digest}" in told) == (0, True)
    code, _, told = ppt("gc", url, "--delete")
    assert (code, "see that none is on any machine, and add --alone" in told) == (2, True), told
    assert other.is_complete()
    code, _, told = ppt("gc", url, "--delete", "--alone")
    assert (code, told.count("removed: "), other.digest in told) == (0, 1, True)
    assert child.is_complete() and used.is_complete() and not other.sizes()
    store.fs.rm(store.path, recursive=True)

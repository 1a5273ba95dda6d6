"""Bits flipped in a real store: every one is told or mended, and no result changes in silence."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from common import TINY, nodes_of, run_here, tiny, two_stages
from PIL import Image
from typer.testing import CliRunner

from ppt.config import ConfigError, Curriculum
from ppt.curriculum.run import run_curriculum
from ppt.jobs.cli import app
from ppt.steps.local_runner import LocalRunner
from ppt.steps.runner import forget_read
from ppt.steps.step import Step
from ppt.store.checkpoint_files import GENERATOR
from ppt.store.checksums import DamagedFile
from ppt.store.nodes import Node, Store
from ppt.tracking.record import RunRecord
from ppt.training.stage import epoch_node

FLIPS = 3
"""The flips in each kind of file."""


class Recorder(LocalRunner):
    """Remembers the step of each node."""

    def __init__(self, curriculum: Curriculum) -> None:
        super().__init__(Store(curriculum.store), curriculum.resources)
        self.steps: dict[str, Step] = {}

    def run(self, step: Step) -> Node:
        node = super().run(step)
        self.steps[node.digest] = step
        return node


@pytest.fixture(scope="module")
def curriculum(tiny_run: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Curriculum:
    """The tiny curriculum with a copy of its finished store, which tests damage and mend."""
    folder = tmp_path_factory.mktemp("damage")
    shutil.copytree(Path(tiny_run.curriculum.store, "store"), folder / "runs" / "store")
    return tiny(folder, folder / "runs")


@pytest.fixture(scope="module")
def runner(curriculum: Curriculum) -> Recorder:
    runner = Recorder(curriculum)
    run_curriculum(curriculum, runner)
    return runner


def contents(store: Path) -> dict[str, bytes]:
    """By its path, every file of the nodes of a store, but for the times of epochs."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted((store / "store").rglob("*"))
        if path.is_file()
    }


def kinds_of_files(store: Path) -> dict[tuple[str, str], list[Path]]:
    """The files of a store by the kinds of their nodes and what they hold."""
    kinds = defaultdict(list)
    for name in contents(store):
        path = store / name
        kinds[path.parent.parent.name, path.stem.rstrip("0123456789").partition("-")[0]].append(
            path
        )
    return kinds


def flip(path: Path, seed: object) -> None:
    """Flip one bit at a place that depends on the seed."""
    content, rng = bytearray(path.read_bytes()), random.Random(str(seed))
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.unlink()  # tables that were read before are mapped to it
    path.write_bytes(content)
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 1))  # the clock of files is coarse


def everything(node: Node) -> list[object]:
    """All that is read of a node."""
    manifest = node.manifest()
    told = [manifest[key] for key in ("digest", "made_from")]
    if not node.num_buckets:
        folder = Path(node.local_folder())
        files = [p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix != ".json"]
        return [*told, manifest["history"], manifest["model"], *files]
    names = node.receipt(0)["files"]
    return [*told, node.counts(), node.info(), *(node.read_all(name) for name in names)]


def test_a_flipped_bit_in_every_kind_of_file(curriculum: Curriculum, runner: Recorder) -> None:
    store, told = Path(curriculum.store), defaultdict(int)
    before = contents(store)
    for (kind, held), paths in kinds_of_files(store).items():
        for number in range(FLIPS):
            path = random.Random(f"{kind} {held} {number}").choice(paths)
            digest = path.parent.name
            step = runner.steps.get(digest)
            node = step.node(runner.store) if step else Node(runner.store, kind, digest, {})
            whole = everything(node)
            flip(path, (kind, held, number))
            forget_read()  # as a new process that finds the file so
            try:
                is_complete = node.is_complete()
                if is_complete:
                    assert everything(node) == whole, path
                outcome = "the same" if is_complete else "to be made anew"
            except DamagedFile as damage:
                outcome = "told"
                assert str(path) in str(damage)
                assert "\n" not in str(damage)
                assert "run the command again" in str(damage)
                if damage.bucket is not None:
                    node.discard(damage.bucket)
            told[kind, held, outcome] += 1
            if step:
                forget_read()
                runner.run(step)
                assert path.read_bytes() == before[str(path.relative_to(store))], path
            else:
                path.write_bytes(before[str(path.relative_to(store))])
    assert sum(told.values()) >= 40
    assert contents(store) == before
    same = {held for _, held, outcome in told if outcome == "the same"}
    assert same <= {"epoch", "manifest", "bucket"}  # a digit of JSON without which the number is it


def json_files(store: Path) -> list[Path]:
    """A manifest and a receipt of a table, and the manifest of a checkpoint."""
    labels = next((store / "store" / "labels").iterdir())
    checkpoint = next((store / "store" / "checkpoints").iterdir())
    return [labels / "manifest.json", labels / "bucket-00000.json", checkpoint / "manifest.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b"half"])
def test_json_that_is_cut_or_none(
    curriculum: Curriculum, runner: Recorder, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    for path in json_files(Path(curriculum.store)):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
        if path.parent.parent.name == "checkpoints":
            node = Node(runner.store, "checkpoints", path.parent.name, {})
            with pytest.raises(DamagedFile, match=f"^{path} .*: remove {path.parent} and run "):
                node.is_complete()
            with pytest.raises(ConfigError):
                runner.store.complete_nodes()
            path.write_bytes(whole)
        else:
            runner.run(runner.steps[path.parent.name])
            assert path.read_bytes() == whole
    told = capsys.readouterr().err.replace("\n", " ")
    assert told.count("is made anew") == 1  # the receipt; a table's manifest only sums receipts up


def test_files_that_are_gone_or_cut(curriculum: Curriculum, runner: Recorder) -> None:
    store = Path(curriculum.store)
    before = contents(store)
    for (kind, _), paths in kinds_of_files(store).items():
        path = paths[0]
        step = runner.steps.get(path.parent.name)
        if step is None or path.suffix == ".json":
            continue
        for change in (path.unlink, lambda path=path: os.truncate(path, path.stat().st_size // 2)):
            change()
            forget_read()
            runner.run(step)
            assert contents(store) == before, kind
    for path in (store / "store" / "checkpoints").rglob(GENERATOR):
        node = Node(runner.store, "checkpoints", path.parent.name, {})
        for change, told in ((path.unlink, "missing"), (path.touch, "has 0 bytes instead of")):
            change()
            with pytest.raises(DamagedFile, match=f"{path} .*{told}"):
                node.is_complete()
        path.write_bytes(before[str(path.relative_to(store))])


def test_what_a_crash_has_left_goes_when_the_node_is_written(
    curriculum: Curriculum, runner: Recorder
) -> None:
    digest, step = next(iter(runner.steps.items()))
    node = step.node(runner.store)
    left = Path(node.path(".data-00000.parquet.0123abcd"))
    left.write_bytes(b"half a fi")
    assert node.is_complete()
    assert left.exists()
    node.discard(0)
    runner.run(step)
    assert not left.exists()


def test_results_that_the_page_reads_are_told_in_one_line(
    curriculum: Curriculum, runner: Recorder, tiny_run: RunRecord
) -> None:
    """`ppt report` makes no results anew on its own; the line says what to do."""
    store, node = Path(curriculum.store), tiny_run.stages[-1].results
    bucket = next(b for b in range(node.num_buckets) if node.read(b).num_rows)
    path = store / "store" / "results" / node.digest / node.receipt(bucket)["files"]["data"]
    whole = path.read_bytes()
    flip(path, "report")
    forget_read()
    command = ["report", str(store.parent / "two-stages.yaml"), *TINY, f"store={store}", "--local"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.output.splitlines() if "error: " in line]
    told = f"remove it and run the command again, which makes bucket {bucket} anew"
    assert f"{path} of results is damaged" in line
    assert line.endswith(told)
    path.unlink()
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert path.read_bytes() == whole


def test_quarantined_rows_that_are_damaged_are_told_when_they_are_read(tmp_path: Path) -> None:
    """They are read by commands that list them; the summary of a run is made of them."""
    Image.new("RGB", (64, 48)).save(tmp_path / "there.png")
    rows = ("picture,expression", "there.png,a dog", "gone.png,a cat", "lost.png,a cat")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    data = f"data.referring={{format: table, path: {tmp_path / 'table.csv'}}}"
    store = tmp_path / "runs"
    command = ["prepare", str(two_stages(tmp_path)), *TINY, f"store={store}", data, "--local"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0 and "gone.png is missing" in first.output, first.output
    paths = [
        path
        for path in (store / "store" / "samples").rglob("quarantine-*.parquet")
        if pq.read_metadata(path).num_rows
    ]
    assert paths
    for path in paths:
        whole = path.read_bytes()
        flip(path, path)
        forget_read()
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, result.output
        (line,) = [line for line in result.output.splitlines() if "error: " in line]
        assert f"{path} of samples is damaged" in line
        assert (
            f"damaged: {path} of samples" in CliRunner().invoke(app, ["verify", str(store)]).stderr
        )
        path.unlink()
        again = CliRunner().invoke(app, command)
        assert again.stdout == first.stdout
        assert path.read_bytes() == whole


def test_a_store_elsewhere_is_checked_too(curriculum: Curriculum, runner: Recorder) -> None:
    """Files of a remote store are checked in their local copies, and a bad copy is replaced."""
    remote = Store("memory://ppt-damage")
    remote.fs.put(f"{curriculum.store}/store", f"{remote.path}/store", recursive=True)
    checked = set()
    for step in runner.steps.values():
        node = step.node(remote)
        if node.kind in checked:
            continue
        checked.add(node.kind)
        whole = everything(node)
        for name in node.receipt(0)["files"].values():
            path = node.path(name)
            content = bytearray(remote.fs.cat_file(path))
            if name.endswith(".arrow"):
                local = Path(node.local_path(name))
                flip(local, name)
                assert everything(node) == whole
                local.unlink()
            content[len(content) // 2] ^= 4
            remote.fs.pipe_file(path, bytes(content))
            with pytest.raises(DamagedFile, match=f"{path} of {node.kind} is damaged"):
                everything(node)
            content[len(content) // 2] ^= 4
            remote.fs.pipe_file(path, bytes(content))
    assert {"samples", "features", "labels", "results"} <= checked
    remote.fs.rm(remote.path, recursive=True)


def test_an_unfinished_training_that_is_damaged(curriculum: Curriculum, tmp_path: Path) -> None:
    epoch = epoch_node(Store(str(tmp_path / "runs")).node("checkpoints", {"stage": "a"}), 1)
    names = GENERATOR, "optimizer.pt"
    epoch.write_manifest(checksums={n: epoch.write_bytes(n, n.encode()) for n in names})
    for path in sorted(Path(epoch.local_folder()).iterdir()):
        whole = path.read_bytes()
        flip(path, path.name)
        forget_read()
        with pytest.raises(DamagedFile, match=f"^{path} .*: remove {epoch.folder} and run the"):
            epoch.local_folder()
        result = CliRunner().invoke(app, ["verify", str(tmp_path / "runs")])
        assert result.exit_code == 1
        assert f"damaged: {path} " in result.stderr
        path.write_bytes(whole)


def test_verify(curriculum: Curriculum, runner: Recorder, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(Path(curriculum.store, "store"), store / "store")

    def verify(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["verify", *arguments])
        return result.exit_code, result.stdout, result.stderr.replace("\n", " ")

    def cells(table: str, kind: str) -> list[int]:
        (row,) = (line for line in table.splitlines() if line.startswith(f"│ {kind} "))
        return [int(cell) for cell in row.replace(",", "").split("│")[2:-1]]

    code, table, _ = verify(str(store))
    num_files = len(contents(store))
    num_nodes = len(list((store / "store").glob("*/*")))
    assert (code, cells(table, "all")) == (0, [num_nodes, num_files, 0, 0, 0])
    damaged: list[Path] = []
    for kind, paths in kinds_of_files(store).items():
        whole = [path for path in paths if path.parent not in {other.parent for other in damaged}]
        if whole and "epoch" not in kind:
            damaged.append(random.Random(str(kind)).choice(whole))
    for path in damaged:
        flip(path, path)
    code, table, told = verify(str(store))
    assert code == 1
    assert cells(table, "all")[2] == len({path.parent for path in damaged})
    for path in damaged:
        assert f"damaged: {path} of {path.parent.parent.name}" in told

    node = next((store / "store" / "samples").iterdir())  # as stores were before checksums
    shutil.rmtree(store / "store")
    old = store / "store" / "samples" / node.name
    shutil.copytree(Path(curriculum.store, "store", "samples", node.name), old)
    for path in old.glob("*.json"):
        content = json.loads(path.read_bytes())
        for key in ("checksum", "checksums", "num_buckets"):
            content.pop(key, None)
        path.write_text(json.dumps(content))
    code, table, _ = verify(str(store))
    num_files = len(list(old.iterdir()))
    assert (code, cells(table, "samples")) == (0, [1, num_files, 0, 0, num_files])
    step = runner.steps[node.name]
    assert everything(step.node(Store(str(store)))) == everything(step.node(runner.store))
    (old / "manifest.json").unlink()
    (old / ".data-00000.parquet.0123abcd").touch()
    code, table, told = verify(str(store))
    assert (code, cells(table, "samples")[2:4]) == (0, [0, 1])
    assert "1 temporary file" in told
    assert verify(str(tmp_path / "nowhere"))[0] == 2


def test_a_training_mends_what_it_comes_upon(
    curriculum: Curriculum, tiny_run: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage is trained again from features, texts and labels with flipped bits."""
    store, nodes = Path(curriculum.store), nodes_of(tiny_run)
    before = contents(store)
    stage = tiny_run.stages[-1]
    shutil.rmtree(store / "store" / "checkpoints" / stage.checkpoint.digest)
    damaged = []
    for name in ("features.referring", "words.referring", "features.object_centric"):
        node = nodes[name]
        path = store / "store" / node.kind / node.digest / node.receipt(0)["files"]["data"]
        flip(path, name)
        damaged.append(path)
    forget_read()
    record = run_here(curriculum)
    told = capsys.readouterr().err.replace("\n", " ")
    for path in damaged:
        assert f"{path} of {path.parent.parent.name} is damaged" in told
    assert told.count("bucket 0 is made anew") == len(damaged)
    after = contents(store)
    timed = f"checkpoints/{stage.checkpoint.digest}/manifest.json"  # holds the training's seconds
    changed = [name for name in before if "epoch-" not in name and after[name] != before[name]]
    assert set(changed) <= {f"store/{timed}"}
    assert record.stages[-1].history == stage.history
    assert record.stages[-1].metrics == stage.metrics

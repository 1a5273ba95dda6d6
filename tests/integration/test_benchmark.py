"""The benchmark on a tiny world: every part gives all its rows, with values above 0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from common import DATA, run_here, tiny
from typer.testing import CliRunner

from ppt.batches.batch import Batch
from ppt.batches.gather import StageReader
from ppt.curriculum.run import first_training
from ppt.distributed.ray_runner import ray_runner
from ppt.distributed.stream import stream_epochs
from ppt.experiments.benchmark import PARTS
from ppt.experiments.benchmark.actor_scaling import ALONE, measure_actor_scaling
from ppt.experiments.benchmark.input_path import measure_input_path
from ppt.experiments.benchmark.rows import Setting, Workload
from ppt.jobs.cli import app

WORLD = [  # half of what the short form takes, in few buckets
    "num_buckets=2",
    "data.referring.num_pictures=32",
    "data.object_centric.num_pictures=16",
    "data.validation.num_pictures=4",
    "data.evaluation.num_pictures=4",
]

READER = [
    "reader",
    "reader",
    "bare copy",
    "reader / bare copy",
    "reads of a picture in an iteration",
]
NAMES = {  # of the rows without Ray, by part and size
    ("a", "toy"): ["on stored features", "encoding every iteration", "stored / encoding"],
    ("b", "toy"): [
        "local runner",
        "plain loop",
        "local runner / plain loop",
        "local runner, end of an epoch",
        "plain loop, end of an epoch",
    ],
    ("c", "toy"): READER,
    ("c", "full"): [*READER, "256 buckets / 16 buckets"],
    ("c", "full, 256 buckets"): READER,
    ("d", "toy"): ["step encode", "bare nets", "step / bare nets"],
    ("g", "toy"): [
        "from the command to the first iteration",
        "from stage to stage, with Select and evaluation",
        "from the last iteration to the end",
    ],
}
ITERATION = {"fetch", "targets", "transfer", "forward", "matching", "decode", "losses"}
ITERATION |= {"backward", "optimiser", "rest"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    arguments = ["benchmark", "--short", "--local", "--out", str(folder), *WORLD]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "benchmark.json").read_text())["rows"]


def test_every_part_has_all_its_rows(rows: list[dict[str, Any]]) -> None:
    # The end of an epoch is the difference of two measurements, as small as their noise here.
    assert all(row["value"] > 0 or row["name"] == "local runner, end of an epoch" for row in rows)
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        found.setdefault((row["part"], row["size"]), []).append(row["name"])
    for of, names in NAMES.items():
        assert found.pop(of) == names
    assert set(found.pop(("f", "toy"))) > ITERATION
    by_size = [found.pop(("g", f"{number} pictures")) for number in ("170", "1,700")]
    assert (
        by_size == [["from a stage's start to its first iteration", "memory of all processes"]] * 2
    )
    assert list(found) == [("h", "1x"), ("h", "4x"), ("h", "16x")]


def test_the_rows_of_a_part_belong_together(rows: list[dict[str, Any]]) -> None:
    def value(part: str, size: str, name: str, unit: str) -> float:
        keys = {"part": part, "size": size, "name": name, "unit": unit}
        (found,) = (row["value"] for row in rows if row.items() >= keys.items())
        return found

    parts = [value("f", "toy", name, "ms") for name in ITERATION]
    assert value("f", "toy", "whole", "ms") == pytest.approx(sum(parts))
    assert value("c", "full", "reads of a picture in an iteration", "times") == 1
    stored, encoding = ("on stored features", "encoding every iteration")
    assert value("a", "toy", "stored / encoding", "times") == pytest.approx(
        value("a", "toy", stored, "expressions/s") / value("a", "toy", encoding, "expressions/s")
    )


def test_only_the_figures_are_left(folder: Path, rows: list[dict[str, Any]]) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "benchmark.json",
        "benchmark.md",
        "benchmark.svg",
    }
    page = (folder / "benchmark.md").read_text()
    for part, (title, _) in PARTS.items():
        assert (f"## ({part}) {title}" in page) == (part != "e")  # which needs Ray
    assert sum(line.startswith("| ") for line in page.splitlines()) == len(rows) + len(PARTS) - 1


def test_some_parts_alone(tmp_path: Path) -> None:
    arguments = ["benchmark", "--short", "--local", "--parts", "fc", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, *WORLD])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "benchmark.json").read_text())
    parts = [row["part"] for row in content["rows"]]
    assert parts == sorted(parts) and set(parts) == {"c", "f"}
    assert content["facts"]["command"].startswith("ppt benchmark --short --parts fc --local")


@pytest.mark.parametrize("parts", ["", "ax", "A"])
def test_parts_that_there_are_not(parts: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["benchmark", "--parts", parts, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert f"--parts must be letters from a to h, such as acdf, got {parts!r}" in result.output
    assert not list(tmp_path.iterdir())


def test_only_the_embedded_world_is_measured(tmp_path: Path) -> None:
    data = f"data.object_centric={{format: imagenet, root: {DATA}/imagenet-sample}}"
    result = CliRunner().invoke(app, ["benchmark", "--out", str(tmp_path), data])
    assert result.exit_code == 2
    assert "data.object_centric.format must be one of the embedded world" in result.output
    assert "got 'imagenet'" in result.output and not list(tmp_path.iterdir())


def test_two_actors_and_the_stream_are_measured_on_ray(cluster: None, tmp_path: Path) -> None:
    def stream(reader: StageReader, epochs: range) -> Iterator[Iterator[Batch]]:
        resources = record.curriculum.resources
        return stream_epochs(reader, epochs=epochs, rank=0, world_size=1, resources=resources)

    record = run_here(tiny(tmp_path, tmp_path / "runs"), until="label")
    toy = Workload("toy", first_training(record), record.data["referring"].samples, repeats=1)
    full = replace(toy, size="full")
    setting = Setting(
        record=record,
        toy=toy,
        full=full,
        full_steps=full,
        many_buckets=replace(toy, size="many"),
        short=True,
        out=Path(record.folder),
        open_runner=ray_runner,
        stream=stream,
    )
    found = measure_input_path(setting) + measure_actor_scaling(setting)
    assert all(row.value > 0 for row in found)
    rows = {(row.size, row.name): row.value for row in found if row.unit != "MB/s"}
    for name in ("label", "select", ALONE):
        one, two = rows["toy", f"{name}, one actor"], rows["toy", f"{name}, two actors"]
        assert rows["toy", f"{name}, two actors / one"] == pytest.approx(two / one)
    assert rows["full", "through Ray Data / reader"] == pytest.approx(
        rows["full", "through Ray Data"] / rows["full", "reader"]
    )

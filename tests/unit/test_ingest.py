"""Data of which nothing is left end a run before anything is spent on them. No Ray: the passes run
here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppt.config import ConfigError, Resources, load_curriculum
from ppt.data.toybox import ToyboxObjectSource
from ppt.masks import decode_rle
from ppt.pipeline.curriculum import SPLITS, TRAINING_DATA, _Run
from ppt.pipeline.ingest import prepare_ground_truth
from ppt.pipeline.passes import Pool, Process
from ppt.store import Node

QUICKSTART = Path(__file__).parents[2] / "curricula" / "quickstart.yaml"


@dataclass
class InThisProcess(Pool):
    """A pool of no actors."""

    def run(self, node: Node, process: Process, *, title: str, total: int | None = None) -> Node:
        for bucket in node.missing_buckets():
            node.write_bucket(bucket, process(bucket))
        node.write_manifest()
        return node


def table(folder: Path, *rows: dict[str, object]) -> str:
    """An override that names a table of those rows, all of one picture."""
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("\n".join(json.dumps({"picture": "a.png", **row}) for row in rows))
    return f"{{format: table, path: {path}}}"


def run_with(folder: Path, *overrides: str) -> _Run:
    small = [
        f"store={folder / 'runs'}",
        "num_buckets=2",
        *(f"data.{role}.num_pictures=2" for role in (*TRAINING_DATA, *SPLITS)),
    ]
    run = _Run(load_curriculum(QUICKSTART, [*small, *overrides]), allow_training=True)
    run.pool = InThisProcess(Resources())
    return run


@pytest.mark.parametrize("role", SPLITS)
def test_a_split_without_one_mask_ends_the_run_before_anything_is_encoded(
    tmp_path: Path, role: str
) -> None:
    rows = [{"expression": f"thing {i}", "mask": f"masks/{i}.png"} for i in range(3)]
    rows.append({"expression": "another", "polygon": [1, 2]})
    run = run_with(tmp_path, f"data.{role}={table(tmp_path, *rows)}")
    with pytest.raises(ConfigError) as error:
        run.training_inputs()
    (line,) = str(error.value).splitlines()
    assert f"data.{role}: no expression with a mask is left, all 4 are quarantined, 3 of" in line
    assert "masks/0.png is missing from" in line and "Correct the data" in line
    made = {path.name for path in (tmp_path / "runs" / "store").iterdir()}
    assert made == {"samples", "ground_truth"}


def test_training_data_of_which_nothing_is_left(tmp_path: Path) -> None:
    rows = [{"expression": "..."}, {"expression": " "}]
    run = run_with(tmp_path, f"data.referring={table(tmp_path, *rows)}")
    with pytest.raises(ConfigError, match=r"data\.referring: no expression is left, all 2 are"):
        run.prepare()
    run.prepare(["object_centric"])  # what is whole is prepared


def test_one_usable_mask_is_enough(tmp_path: Path) -> None:
    rows = [
        {"expression": "a thing", "mask": "nowhere.png"},
        {"expression": "another", "polygon": [1, 1, 20, 1, 20, 20]},
    ]
    run = run_with(tmp_path, f"data.evaluation={table(tmp_path, *rows)}")
    run.prepare()
    counts = run.nodes["ground_truth.evaluation"].counts()["expressions"]
    assert counts == {"in": 2, "out": 1, "quarantined": 1}


def test_the_truth_of_object_centric_pictures_is_flipped_as_they_are(tmp_path: Path) -> None:
    run = run_with(tmp_path, "data.object_centric.num_pictures=12")
    run.prepare(["object_centric"])
    data = run.curriculum.data.object_centric
    truth = prepare_ground_truth(
        run.store, run.pool, data, name="object_centric", num_buckets=2, flip_seed=0
    )
    truths = {row["picture"]: row for row in truth.read_all().to_pylist()}
    flipped = 0
    for sample in run.nodes["samples.object_centric"].read_all().to_pylist():
        drawn = ToyboxObjectSource(data).picture(sample["picture"])
        stored = np.asarray(Image.open(BytesIO(sample["image"])), np.float32)
        as_drawn = np.abs(stored - drawn.image).mean()
        mirrored = bool(np.abs(stored - drawn.image[:, ::-1]).mean() < as_drawn)
        flipped += mirrored
        mask = drawn.objects[0].mask
        row = truths.pop(sample["picture"])
        found = decode_rle(row["mask"], row["height"], row["width"])
        assert (found == (mask[:, ::-1] if mirrored else mask)).all()
    assert 0 < flipped < 12 and not truths

"""Data of which nothing is left end a run before anything is spent on them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppt.config import ConfigError, load_curriculum
from ppt.curriculum.inputs import DATA, SPLITS, prepare
from ppt.curriculum.run import make_inputs
from ppt.data.source import RawMask, Rejected
from ppt.data.toybox import ToyboxObjectSource, ToyboxScenes, ToyboxSceneSource
from ppt.images.masks import decode_rle
from ppt.steps.local_runner import LocalRunner
from ppt.steps.prepare import PrepareGroundTruth, PrepareSamples
from ppt.store.nodes import Store
from ppt.toybox.world import IMAGE_SIZE
from ppt.tracking.record import RunRecord

QUICKSTART = Path(__file__).parents[2] / "curricula" / "quickstart.yaml"


def table(folder: Path, *rows: dict[str, object]) -> str:
    """An override that names a table of those rows, all of one picture."""
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("\n".join(json.dumps({"picture": "a.png", **row}) for row in rows))
    return f"{{format: table, path: {path}}}"


def run_with(folder: Path, *overrides: str) -> tuple[LocalRunner, RunRecord]:
    small = [
        f"store={folder / 'runs'}",
        "num_buckets=2",
        *(f"data.{role}.num_pictures=2" for role in DATA),
    ]
    curriculum = load_curriculum(QUICKSTART, [*small, *overrides])
    store = Store(curriculum.store)
    return LocalRunner(store, curriculum.resources), RunRecord(curriculum, str(folder))


@pytest.mark.parametrize("role", SPLITS)
def test_a_split_without_one_mask_ends_the_run_before_anything_is_encoded(
    tmp_path: Path, role: str
) -> None:
    rows = [{"expression": f"thing {i}", "mask": f"masks/{i}.png"} for i in range(3)]
    rows.append({"expression": "another", "polygon": [1, 2]})
    run = run_with(tmp_path, f"data.{role}={table(tmp_path, *rows)}")
    with pytest.raises(ConfigError) as error:
        make_inputs(*run)
    (line,) = str(error.value).splitlines()
    assert f"data.{role}: no expression with a mask is left, all 4 are quarantined, 3 of" in line
    assert "masks/0.png is missing from" in line and "Correct the data" in line
    made = {path.name for path in (tmp_path / "runs" / "store").iterdir()}
    assert made == {"samples", "ground_truth"}


def test_training_data_of_which_nothing_is_left(tmp_path: Path) -> None:
    rows = [{"expression": "..."}, {"expression": " "}]
    run = run_with(tmp_path, f"data.referring={table(tmp_path, *rows)}")
    with pytest.raises(ConfigError, match=r"data\.referring: no expression is left, all 2 are"):
        prepare(*run)
    prepare(*run, ["object_centric"])  # what is whole is prepared


def test_one_usable_mask_is_enough(tmp_path: Path) -> None:
    rows = [
        {"expression": "a thing", "mask": "nowhere.png"},
        {"expression": "another", "polygon": [1, 1, 20, 1, 20, 20]},
    ]
    run = run_with(tmp_path, f"data.evaluation={table(tmp_path, *rows)}")
    prepare(*run)
    counts = run[1].data["evaluation"].ground_truth.counts()["expressions"]
    assert counts == {"in": 2, "out": 1, "quarantined": 1}


class _BrokenMasks(ToyboxSceneSource):
    """Scenes whose first mask lacks two rows and whose second mask is empty."""

    def read_ground_truth(self, key: str) -> tuple[list[RawMask], list[Rejected]]:
        (first, second), _ = super().read_ground_truth(key)
        nothing = np.zeros_like(second.mask)
        return [replace(first, mask=first.mask[2:]), replace(second, mask=nothing)], []


class BrokenMasks(ToyboxScenes):
    def open(self) -> ToyboxSceneSource:
        return _BrokenMasks(self)


def test_masks_of_another_size_and_empty_ones_are_quarantined(tmp_path: Path) -> None:
    runner, _ = run_with(tmp_path)
    data = BrokenMasks(format="toybox_scenes", num_pictures=3, seed=1)
    samples = runner.run(PrepareSamples(data, 2, "evaluation"))
    truth = runner.run(PrepareGroundTruth(data, samples, "evaluation"))
    assert truth.counts()["expressions"] == {"in": 6, "out": 0, "quarantined": 6}
    reasons = Counter(row["reason"] for row in truth.quarantine().to_pylist())
    side = IMAGE_SIZE
    assert reasons == {
        f"its mask is of shape [{side - 2}, {side}], its picture [{side}, {side}]": 3,
        "its mask covers no pixel of the picture": 3,
    }


def test_reasons_are_lines_that_a_terminal_can_show(tmp_path: Path) -> None:
    names = ["x" * 40_000 + ".png", "two\nlines.png", "\x1b[31mred.png"]
    rows = [{"expression": f"thing {i}", "picture": name} for i, name in enumerate(names)]
    whole = {"expression": "a thing"}
    runner, record = run_with(tmp_path, f"data.referring={table(tmp_path, *rows, whole)}")
    prepare(runner, record, ["referring"])
    samples = record.data["referring"].samples
    assert samples.counts()["expressions"] == {"in": 4, "out": 1, "quarantined": 3}
    reasons = {row["picture"]: row["reason"] for row in samples.quarantine().to_pylist()}
    assert reasons.keys() == set(names)
    long, broken, coloured = (reasons[name] for name in names)
    assert len(long) <= 1_000 and long.startswith("line 1: picture xxx")
    assert broken.startswith("line 2: picture two\\nlines.png is missing from ")
    assert coloured.startswith("line 3: picture \\x1b[31mred.png is missing from ")


def test_the_truth_of_object_centric_pictures_is_flipped_as_they_are(tmp_path: Path) -> None:
    run = run_with(tmp_path, "data.object_centric.num_pictures=12")
    prepare(*run, ["object_centric"])
    runner, record = run
    data = record.curriculum.data.object_centric
    samples = record.data["object_centric"].samples
    truth = runner.run(PrepareGroundTruth(data, samples, "object_centric", object_centric=True))
    truths = {row["picture"]: row for row in truth.read_all().to_pylist()}
    flipped = 0
    for sample in record.data["object_centric"].samples.read_all().to_pylist():
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


def test_a_source_without_samples_ends_the_run_before_anything_is_trained(tmp_path: Path) -> None:
    """The only sentence of H has one noun phrase and so one candidate: H_ref is empty."""
    run = run_with(
        tmp_path,
        f"data.referring={table(tmp_path, {'expression': 'the thing'})}",
        *("data.object_centric.num_pictures=8", "synthesis.num_pictures=8"),
        "labels.max_instances=1",
    )
    with pytest.raises(ConfigError) as error:
        make_inputs(*run)
    told = str(error.value).splitlines()
    assert [line.partition(": ")[0] for line in told] == [
        "stages.ris_joint.sources.h_ref",
        "stages.domain_refinement.sources.h_ref",
    ]
    assert "no sample of h_ref is left: remove this source, or give" in told[0]
    assert not run[1].data["evaluation"].has("features")

"""docs/extending.md: what it tells a stranger to write works as it stands there."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field
from safetensors.torch import load_file

import ppt.data
from ppt.config import (
    ConfigError,
    DataFormat,
    LossWeights,
    MatchCost,
    data_formats,
    load_curriculum,
)
from ppt.config.stage_kinds import STAGE_KINDS
from ppt.curriculum.inputs import prepare
from ppt.curriculum.run import make_inputs, train_stages
from ppt.data.source import check_data_sets
from ppt.doctor.data_sets import check_data
from ppt.evaluation import metrics
from ppt.evaluation.metrics import Overlaps, measure
from ppt.images.masks import decode_rle
from ppt.steps.local_runner import LocalRunner
from ppt.store.checkpoint_files import GENERATOR
from ppt.store.nodes import Node, Store
from ppt.tracking.record import RunRecord
from ppt.training import criterion
from ppt.training.criterion import DecodedMasks, SetCriterion

ROOT = Path(__file__).parents[2]


def blocks(section: str) -> list[str]:
    """The Python blocks below a heading of docs/extending.md, in their order."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)


@pytest.fixture
def phrasecut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document's data set: its file in a folder of `ppt.data`, its line in the registry."""
    file, registry = blocks("A new data set")
    assert len(file.splitlines()) <= 70
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "phrasecut.py").write_text(file)
    monkeypatch.setattr(ppt.data, "__path__", [*ppt.data.__path__, str(tmp_path / "data")])
    monkeypatch.delitem(sys.modules, "ppt.data.phrasecut", raising=False)
    names: dict[str, dict[str, str]] = {}
    exec(registry, names)
    added = names["REFERRING"].items() - data_formats.REFERRING.items()
    assert added == {("phrasecut", "ppt.data.phrasecut:PhraseCutData")}
    for name, place in added:
        monkeypatch.setitem(data_formats.REFERRING, name, place)


def square(low: int, high: int) -> list[list[int]]:
    return [[low, low], [high, low], [high, high], [low, high]]


def write_tasks(root: Path) -> Path:
    """Two pictures and a third that is missing; six phrases, of which three have a mask."""
    (root / "images").mkdir(parents=True)
    for image_id in (1, 2):
        noise = np.random.default_rng(image_id).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(root / "images" / f"{image_id}.jpg")
    tasks = [
        (1, "blue mug", [[square(2, 6)]]),
        (1, "two mugs", [[square(2, 6)], [square(10, 20), square(22, 26)]]),
        (1, "...", [[square(2, 6)]]),
        (2, "a lamp", [[square(0, 10)]]),
        (2, "the shelf", [[[[1, 1], [2, 2]]]]),
        (3, "a door", [[square(0, 10)]]),
    ]
    rows = [
        {"task_id": f"{image}__{i}", "image_id": image, "phrase": phrase, "Polygons": polygons}
        for i, (image, phrase, polygons) in enumerate(tasks)
    ]
    (root / "refer_train.json").write_text(json.dumps(rows))
    return root


def test_a_new_data_set(tmp_path: Path, phrasecut: None) -> None:
    root = write_tasks(tmp_path / "phrasecut")
    group = f"{{format: phrasecut, root: {root}}}"
    curriculum = load_curriculum(
        ROOT / "curricula" / "quickstart.yaml",
        [f"store={tmp_path / 'runs'}", f"data.referring={group}", f"data.validation={group}"],
    )
    data = curriculum.data.validation
    assert isinstance(data, DataFormat)
    assert data.model_dump() == {"format": "phrasecut", "root": root, "split": "train"}
    record = RunRecord(curriculum, str(tmp_path))
    prepare(LocalRunner(Store(curriculum.store), curriculum.resources), record, ["validation"])

    tables = record.data["validation"]
    assert tables.samples.counts() == {
        "pictures": {"in": 3, "out": 2, "quarantined": 1},
        "expressions": {"in": 6, "out": 4, "quarantined": 2},
    }
    samples = {row["picture"]: row for row in tables.samples.read_all().to_pylist()}
    assert {e["text"] for e in samples["1.jpg"]["expressions"]} == {"blue mug", "two mugs"}
    assert {e["text"] for e in samples["2.jpg"]["expressions"]} == {"a lamp", "the shelf"}
    assert samples["1.jpg"]["image"] == (root / "images" / "1.jpg").read_bytes()
    reasons = {row["picture"]: row["reason"] for row in tables.samples.quarantine().to_pylist()}
    assert reasons["1.jpg"] == "expression '...' has no word"
    assert "3.jpg is missing" in reasons["3.jpg"]

    truth = {row["expression_id"]: row for row in tables.ground_truth.read_all().to_pylist()}
    assert set(truth) == {"1__0", "1__1", "2__3"}
    both = np.zeros((30, 40), bool)
    for low, high in ((2, 6), (10, 20), (22, 26)):
        both[low:high, low:high] = True
    assert (decode_rle(truth["1__1"]["mask"], 30, 40) == both).all()
    counts = tables.ground_truth.counts()["expressions"]
    assert counts == {"in": 5, "out": 3, "quarantined": 2}

    check, content = check_data("validation", curriculum.data)
    assert check.state == "warning"
    assert check.found == f"phrasecut {root}: 2 of 3 pictures"
    assert check.todo == "missing pictures are quarantined (3.jpg)"
    assert content is not None and (content.pictures, content.expressions) == (2, 5)


def test_what_is_wrong_with_a_new_data_set_is_named(tmp_path: Path, phrasecut: None) -> None:
    quickstart = ROOT / "curricula" / "quickstart.yaml"
    group = f"{{format: phrasecut, root: {tmp_path}, split: val}}"
    with pytest.raises(ValueError, match=r"PhraseCut in '.*refer_val.json' \(FileNotFoundError"):
        load_curriculum(quickstart, [f"data.referring={group}"]).data.referring.open()
    with pytest.raises(ConfigError, match="data.referring.root is missing"):
        load_curriculum(quickstart, ["data.referring={format: phrasecut}"])
    with pytest.raises(ConfigError, match="format: must be one of imagenet, .*, got 'phrasecut'"):
        load_curriculum(quickstart, [f"data.object_centric={group}"])


def test_an_index_of_another_form_is_told_in_a_line(tmp_path: Path, phrasecut: None) -> None:
    (tmp_path / "refer_train.json").write_text('[{"task": 1}]')
    group = f"{{format: phrasecut, root: {tmp_path}}}"
    roles = [f"data.{name}={group}" for name in ("referring", "validation")]
    data = load_curriculum(ROOT / "curricula" / "quickstart.yaml", roles).data
    with pytest.raises(ConfigError) as caught:
        check_data_sets(data)
    index = str(tmp_path / "refer_train.json")
    told = f"no index of PhraseCut in {index!r} (KeyError('task_id'))"
    assert str(caught.value) == f"data.referring: {told}\ndata.validation: {told}"


def test_a_loss() -> None:
    method, line, field = blocks("A new loss")
    namespace = dict(vars(criterion))
    exec(method, namespace)
    fields: dict = {"Field": Field, "__annotations__": {}}
    exec(field, fields)
    weights_type = type(
        "Weights",
        (LossWeights,),
        {"__annotations__": {"outline": float}, "outline": fields["outline"]},
    )

    class Extended(SetCriterion):
        loss_outline = namespace["loss_outline"]

        def __init__(self, match_cost: MatchCost, weights: LossWeights) -> None:
            super().__init__(match_cost, weights)
            self.mask_losses |= eval("{" + line + "}", {"self": self})

    extended = Extended(MatchCost(), weights_type(outline=0.5))
    assert extended.weights["loss_outline"] == 0.5 and "loss_unmatched" not in extended.weights
    assert list(extended.mask_losses)[-1] == "loss_outline"
    # A mask of one pixel has an outline of four steps of 1; an equal prediction has the same.
    targets = torch.zeros(1, 6, 6)
    targets[0, 2, 3] = 1
    valid = torch.ones(1, 6, 6)
    equal = DecodedMasks((targets - 0.5) * 200, targets, valid, 1.0)
    assert extended.loss_outline(equal).item() == pytest.approx(0, abs=1e-6)
    logits = torch.full((1, 6, 6), -100.0, requires_grad=True)
    nothing = extended.loss_outline(DecodedMasks(logits, targets, valid, 0.5))
    assert nothing.item() == pytest.approx(4 / 36 / 0.5)
    nothing.backward()
    assert logits.grad is not None


def test_a_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    function, line = blocks("A new metric")
    namespace = dict(vars(metrics))
    exec(function, namespace)
    (entry,) = eval("{" + line + "}", namespace).items()
    monkeypatch.setitem(metrics.METRICS, *entry)
    values = measure(Overlaps.of([(1, 10), (3, 4), (8, 10), (0, 5)]))
    assert values["median IoU"] == pytest.approx(100 * np.median([0.1, 0.75, 0.8, 0]))
    assert values["mIoU"] == pytest.approx(100 * np.mean([0.1, 0.75, 0.8, 0]))


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The example's module, registered by the example's line."""
    module = types.ModuleType("ppt.training.mean_teacher")
    code, line = blocks("A new kind of stage")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))
    (entry,) = eval("{" + line + "}", vars(module)).items()
    monkeypatch.setitem(STAGE_KINDS, *entry)
    return module


def test_a_kind_of_stage(
    teacher: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean teacher without decay and without its loss is the standard kind, bit for bit."""
    standard = _trained(tmp_path, "standard")
    taught = _trained(tmp_path, "mean_teacher")
    assert taught.digest != standard.digest
    assert all(epoch["loss_teacher"] > 0 for epoch in taught.manifest()["history"])
    found = [_generator(standard), _generator(taught)]
    monkeypatch.setattr(teacher.MeanTeacher, "version", 2)
    monkeypatch.setattr(teacher.MeanTeacher, "decay", 0.0)
    monkeypatch.setattr(teacher.TeacherCriterion, "weight", 0.0)
    untaught = _trained(tmp_path, "mean_teacher")
    assert untaught.digest != taught.digest
    found.append(_generator(untaught))
    for name, value in found[0].items():
        assert torch.equal(found[2][name], value)
    assert any(not torch.equal(found[1][name], value) for name, value in found[0].items())


def _trained(store: Path, kind: str) -> Node:
    """The checkpoint of the first stage; what it is trained on is made by the first call."""
    curriculum = load_curriculum(
        ROOT / "curricula" / "quickstart.yaml",
        [
            *(f"store={store}", "num_buckets=1", "synthesis.num_pictures=4"),
            *(f"data.{d}.num_pictures=6" for d in ("referring", "validation", "evaluation")),
            *("data.object_centric.num_pictures=8", "training.global_batch_size=4"),
            *("stages.semantic_alignment.num_epochs=2", f"stages.semantic_alignment.kind={kind}"),
        ],
    )
    runner = LocalRunner(Store(str(store)), curriculum.resources)
    record = RunRecord(curriculum, str(store))
    make_inputs(runner, record)
    return next(train_stages(runner, record)).checkpoint


def _generator(checkpoint: Node) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.path(GENERATOR))

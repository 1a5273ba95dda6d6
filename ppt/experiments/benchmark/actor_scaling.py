"""(e) Select and label by one actor and by two, which needs Ray.

The model alone, without tables, shows what two processes can do at most on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial

import pyarrow as pa

from ppt.batches.batch import Batch
from ppt.batches.gather import PictureRow, gather_pictures
from ppt.batches.sampler import LabelTable
from ppt.curriculum.inputs import label_table
from ppt.experiments.benchmark.measuring import shortest
from ppt.experiments.benchmark.rows import RATIO, Row, Setting
from ppt.models.loaded import current_device
from ppt.steps.inference import PICTURES_AT_ONCE, query_masks, trained
from ppt.steps.label import LabelReferring
from ppt.steps.local_runner import LocalRunner
from ppt.steps.select import SelectReferents
from ppt.steps.step import Step
from ppt.store.nodes import DATA, BucketOutput

ALONE = "Select's model alone"
"""The name of what Select's actors compute without reading, choosing and writing."""


@dataclass(frozen=True)
class ModelOfSelect(SelectReferents):
    """What the model computes in Select, for the same pictures in each bucket; no labels."""

    kind = "benchmark"

    def total(self) -> int:
        return self.buckets * len(_in_memory(self.before).texts)

    def __call__(self, bucket: int) -> BucketOutput:
        batch = _in_memory(self.before).to(current_device())
        query_masks(trained(self.checkpoint, self.model), batch)
        return BucketOutput({DATA: pa.table({"bucket": [bucket]})})


@cache
def _in_memory(of: LabelTable) -> Batch:
    """Return a batch of the first pictures of a table, with all their expressions."""
    rows: list[PictureRow] = []
    for bucket in range(of.labels.num_buckets):
        columns = of.labels.read(bucket, of.table, ["picture", "expression_id", "text"])
        texts: dict[str, list[tuple[str, str]]] = {}
        for row in columns.to_pylist():
            texts.setdefault(row["picture"], []).append((row["expression_id"], row["text"]))
        for picture, of_picture in texts.items():
            ids, its_texts = zip(*of_picture, strict=True)
            rows.append(PictureRow(of.features, of.words, bucket, picture, ids, its_texts))
        if len(rows) >= PICTURES_AT_ONCE:
            break
    return gather_pictures(rows[:PICTURES_AT_ONCE])


def measure_actor_scaling(setting: Setting) -> list[Row]:
    """Measure both steps on the embedded world's pictures."""
    if not setting.on_ray:
        return []
    curriculum, record = setting.curriculum, setting.record
    local = LocalRunner(setting.store("trained"), curriculum.resources)
    once = setting.toy.stage.stage.model_copy(update={"num_epochs": 1})
    checkpoint = local.train(replace(setting.toy.stage, stage=once), lambda losses: None)
    tables = record.data["referring"]
    steps: dict[str, Step] = {
        "label": LabelReferring(
            tables.samples,
            tables.features,
            tables.phrases,
            curriculum.model,
            curriculum.labels.referring,
            "h",
            curriculum.labels,
        ),
        "select": SelectReferents(
            label_table(record, "referring"), checkpoint, curriculum.model, curriculum.select, 1
        ),
    }
    selecting = steps["select"]
    assert isinstance(selecting, SelectReferents)
    steps[ALONE] = ModelOfSelect(**vars(selecting))
    by_one, by_two = (_rates(setting, steps, number) for number in (1, 2))
    rows = []
    for name in steps:
        one, two = by_one[name], by_two[name]
        rows += [
            Row("e", "toy", f"{name}, one actor", one, "expressions/s"),
            Row("e", "toy", f"{name}, two actors", two, "expressions/s"),
            Row("e", "toy", f"{name}, two actors / one", two / one, RATIO),
        ]
    return rows


def _rates(setting: Setting, steps: dict[str, Step], num_actors: int) -> dict[str, float]:
    """Return the expressions a second of each step by actors that have built their nets already."""
    resources = setting.curriculum.resources.model_copy(update={"num_actors": num_actors})
    curriculum, rates, number = setting.curriculum, {}, 0
    with setting.open_runner(curriculum.model_copy(update={"resources": resources})) as runner:

        def make(step: Step) -> None:
            nonlocal number
            number += 1  # in a store of its own, where nothing is made yet
            runner.store = setting.store(f"actors-{num_actors}-{number}")
            runner.run(step)

        for name, step in steps.items():
            make(step)
            (seconds,) = shortest(setting.toy.repeats, partial(make, step))
            rates[name] = (step.total() or 0) / seconds
    return rates

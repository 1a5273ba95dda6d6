"""(e) Select and label by one actor and by two, which needs Ray."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ppt.curriculum.inputs import label_table
from ppt.experiments.benchmark.measuring import shortest
from ppt.experiments.benchmark.rows import RATIO, Row, Setting
from ppt.steps.label import LabelReferring
from ppt.steps.local_runner import LocalRunner
from ppt.steps.select import SelectReferents
from ppt.steps.step import Step


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

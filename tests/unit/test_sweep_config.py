"""Sweep files: what they say, and what is wrong with them before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ppt.config import ConfigError, load_curriculum
from ppt.experiments.sweep import Sweep, curriculum_of, load_sweep, trials_of

ROOT = Path(__file__).parents[2]
QUERIES = "model.point_generator.num_queries"


def sweep(**changes: Any) -> Sweep:
    facts = {
        "name": "s",
        "curriculum": ROOT / "curricula" / "quickstart.yaml",
        "space": {"stages.semantic_alignment.num_epochs": [2, 4], QUERIES: [4, 8, 16]},
    }
    return Sweep.model_validate(facts | changes)


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "sweep.yaml"
    facts = {"name": "s", "curriculum": "c.yaml", "space": {QUERIES: [4, 8]}}
    path.write_text(yaml.safe_dump(facts | changes))
    return path


def test_a_grid_is_every_combination() -> None:
    trials = trials_of(sweep())
    assert [tuple(values.values()) for values in trials] == [
        *((2, 4), (2, 8), (2, 16)),
        *((4, 4), (4, 8), (4, 16)),
    ]


def test_a_trials_curriculum_has_its_values() -> None:
    curriculum = curriculum_of(sweep(), "03", trials_of(sweep())[1], ["seed=7"])
    assert curriculum.stages["semantic_alignment"].num_epochs == 2
    assert curriculum.model.point_generator.num_queries == 8
    assert curriculum.seed == 7
    assert curriculum.name == "s.03"
    assert curriculum.model_selection == "pseudo_iou"


def test_random_draws_are_the_seeds_and_in_range() -> None:
    space = {
        "training.learning_rate": {"min": 1e-5, "max": 1e-2, "log": True},
        "stages.ris_joint.num_epochs": {"min": 1, "max": 3},
        QUERIES: [4, 8],
    }
    ours = sweep(search="random", num_samples=40, space=space)
    trials = trials_of(ours)
    assert trials == trials_of(ours) != trials_of(ours.model_copy(update={"seed": 1}))
    assert len(trials) == 40
    assert {t["stages.ris_joint.num_epochs"] for t in trials} == {1, 2, 3}
    assert {t[QUERIES] for t in trials} == {4, 8}
    rates = [t["training.learning_rate"] for t in trials]
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert 8 < sum(rate < 10**-3.5 for rate in rates) < 32, "log: half of them in the lower half"
    rate = curriculum_of(ours, "00", trials[0]).training.learning_rate
    assert rate == pytest.approx(rates[0])


def test_random_draws_the_same_trial_once() -> None:
    assert len(trials_of(sweep(search="random", num_samples=60))) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spaces": {}}, r"sweep.yaml: unknown key 'spaces'"),
        ({"search": "bayes"}, "search: .*'grid'.*got 'bayes'"),
        ({"space": {}}, "space: .*at least 1"),
        ({"space": {QUERIES: []}}, f"space.{QUERIES} must have at least one value"),
        ({"space": {f"k{i}": [1, 2] for i in range(40)}}, f"space has {2**40} trials, more than"),
        ({"name": "store"}, "name: 'store' is the name of something else"),
        ({"num_samples": 10**12}, "num_samples: .* less than or equal to 10000"),
        ({"space": {QUERIES: {"min": 4, "max": 8}}}, f"space.{QUERIES} must be a list"),
        ({"space": {"name": ["a"]}}, "space.name: the sweep sets name"),
        (
            {"search": "random", "space": {QUERIES: {"min": 8, "max": 4}}},
            "min must be < max, got 8 and 4",
        ),
        (
            {"search": "random", "space": {QUERIES: {"min": 0, "max": 4, "log": True}}},
            "min must be > 0 for log, got 0",
        ),
    ],
)
def test_a_wrong_file_is_told_with_key_and_value(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_sweep(written(tmp_path, **changes))


def test_texts_and_numbers_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    values = "[1, 0.5, 1e-3, true, null, yes, '1', 010, 2026-01-01, /a #b, \"/a #b\"]"
    path.write_text(f"name: s\ncurriculum: c.yaml\nspace: {{training.x: {values}}}")
    with pytest.raises(ConfigError, match="sweep.yaml .* line 3: .*expected ','"):
        load_sweep(path)
    path.write_text(path.read_text().replace("/a #b, ", ""))
    texts = ["yes", "1", "010", "2026-01-01", "/a #b"]
    assert load_sweep(path).space == {"training.x": [1, 0.5, 0.001, True, None, *texts]}
    path.write_text(path.read_text() + "\nname: t")
    with pytest.raises(ConfigError, match="line 4: key 'name' is given twice"):
        load_sweep(path)


def test_a_text_of_the_space_is_the_text() -> None:
    ours = sweep(space={"published_image_size": [512], "model.clip.weights": ["1e3 #a", None]})
    first, second = (curriculum_of(ours, "0", values) for values in trials_of(ours))
    assert (first.model.clip.weights, second.model.clip.weights) == ("1e3 #a", None)


def test_a_curriculum_is_no_sweep_and_a_sweep_no_curriculum(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quickstart.yaml is a curriculum, not a sweep"):
        load_sweep("quickstart")
    with pytest.raises(ConfigError, match=r"sweep.yaml is a sweep, .* run it by `ppt sweep`"):
        load_curriculum(written(tmp_path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sweep at"):
        load_sweep(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training.learning_rat": 1}, r"unknown key 'training.learning_rat' .*\(trial 00: "),
        ({QUERIES: "many"}, f"{QUERIES}: .*got 'many'"),
        ({"stages.semantic.num_epochs": 2}, "no such stage; this curriculum has"),
    ],
)
def test_a_key_that_no_curriculum_has(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        curriculum_of(sweep(), "00", values)


@pytest.mark.parametrize("path", sorted((ROOT / "curricula" / "sweeps").glob("*.yaml")), ids=str)
def test_the_repositorys_sweeps_load(path: Path) -> None:
    ours = load_sweep(path)
    for i, values in enumerate(trials_of(ours)):
        curriculum_of(ours, f"{i:02d}", values)

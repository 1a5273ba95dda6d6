"""The configuration: what a user gets wrong is told by field and value."""

from pathlib import Path

import pytest

from ppt.config import ConfigError, load_curriculum

CURRICULA = Path(__file__).parents[2] / "curricula"


@pytest.fixture
def quickstart() -> Path:
    return CURRICULA / "quickstart.yaml"


def test_quickstart_is_the_papers_curriculum(quickstart: Path) -> None:
    curriculum = load_curriculum(quickstart)
    assert list(curriculum.stages) == [
        "semantic_alignment",
        "ris_object_centric",
        "ris_joint",
        "domain_refinement",
    ]
    assert set(curriculum.stages["semantic_alignment"].sources) == {"h_sem", "d_sem"}  # Eq. 5
    assert set(curriculum.stages["domain_refinement"].sources) == {"h_sem", "h_ref"}  # Eq. 7
    assert [stage.select for stage in curriculum.stages.values()] == [False, False, True, True]


def test_an_override_changes_one_value(quickstart: Path) -> None:
    changed = load_curriculum(quickstart, ["stages.ris_joint.num_epochs=2", "seed=7"])
    plain = load_curriculum(quickstart)
    assert changed.stages["ris_joint"].num_epochs == 2
    assert changed.seed == 7
    assert changed.stages["semantic_alignment"] == plain.stages["semantic_alignment"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.ris_joint.epochs=2", r"unknown key 'stages.ris_joint.epochs' \(value 2\)"),
        ("stages.ris_joint.num_epochs=-3", "stages.ris_joint.num_epochs: .* got -3"),
        ("stages.ris_joint.num_epochs=two", "stages.ris_joint.num_epochs: .* got 'two'"),
        ("nonsense", "override 'nonsense' must look like"),
        ("seed.deep=1", "seed is a value, not a group"),
        ("stages.ris_joint.sources={h_ref: 0}", "sources.h_ref must be > 0, got 0"),
        ("training.global_batch_size=1", "global_batch_size must be >= resources.num_workers"),
        ("stages.semantic_alignment.select=true", "semantic_alignment.select must be false"),
        ("model.point_generator.num_heads=3", "num_heads must divide"),
        ("name=a/b", "name: .* got 'a/b'"),
    ],
)
def test_what_is_wrong_is_named(quickstart: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_curriculum(quickstart, [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no curriculum at .*nowhere.yaml"):
        load_curriculum(tmp_path / "nowhere.yaml")


def test_a_missing_path_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="data.referring.root is missing: .*data.referring.root="):
        load_curriculum(CURRICULA / "photos.yaml")

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
        ("stages.ris_joynt.num_epochs=1", "no such stage; .* has semantic_alignment, ris_object"),
        (
            "data.referring={format: coco}",
            "data.referring.format: must be one of refer, table, toybox_scenes, got 'coco'",
        ),
        (
            "data.evaluation={format: imagenet, root: x}",
            "data.evaluation.format: must be one of refer, .* got 'imagenet'",
        ),
        (
            "data.object_centric={format: refer, root: x}",
            "data.object_centric.format: must be one of imagenet, .* got 'refer'",
        ),
        ("data.referring={root: x}", "data.referring.format: must be one of .* got None"),
        ("data.referring={format: [refer]}", r"referring.format: must be .* got \['refer'\]"),
        ("data.referring=5", "data.referring: must be a group of keys .* got 5"),
        ("data.referring.rot=x", r"unknown key 'data.referring.rot' \(value 'x'\)"),
        ("data.referring.num_pictures=0", "data.referring.num_pictures: .* got 0"),
        ("nonsense", "override 'nonsense' must look like"),
        ("seed.deep=1", "seed is a value, not a group"),
        ("stages.ris_joint.sources={h_ref: 0}", "sources.h_ref must be > 0, got 0"),
        ("resources.num_workers=33", "global_batch_size must be >= resources.num_workers"),
        (
            "resources.num_workers=[1, 64]",
            "global_batch_size must be >= .*64",
        ),
        (
            "resources.num_workers=0",
            "num_workers: must be a number from 1 .* got 0",
        ),
        ("resources.num_workers=[3, 2]", r"\[fewest, most\], got \[3, 2\]"),
        ("stages.semantic_alignment.select=true", "semantic_alignment.select must be false"),
        ("model.point_generator.num_heads=3", "num_heads must divide"),
        ("name=a/b", "name: .* got 'a/b'"),
    ],
)
def test_what_is_wrong_is_named(quickstart: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_curriculum(quickstart, [override])


def test_a_new_stage_is_given_whole(quickstart: Path) -> None:
    more = load_curriculum(quickstart, ["stages.last={sources: {h_sem: 1}, num_epochs: 1}"])
    assert list(more.stages)[-1] == "last"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no curriculum at .*nowhere.yaml"):
        load_curriculum(tmp_path / "nowhere.yaml")


def test_a_missing_path_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="data.referring.root is missing: .*data.referring.root="):
        load_curriculum(CURRICULA / "photos.yaml")


# ---------------------------------------------------------------- base


def changed(folder: Path, text: str, name: str = "changed.yaml") -> Path:
    """A file beside a copy of the quickstart that says what differs from it."""
    (folder / "quickstart.yaml").write_text((CURRICULA / "quickstart.yaml").read_text())
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_base_is_merged_key_by_key(tmp_path: Path, quickstart: Path) -> None:
    text = """
base: ../quickstart.yaml
name: less
training: {learning_rate: 0.5}
stages:
  ris_joint: {sources: {d_ref: null, h_sem: 3}}
  domain_refinement: null
"""
    plain = load_curriculum(quickstart)
    less = load_curriculum(changed(tmp_path, text, "ablations/less.yaml"), ["seed=9"])
    assert (less.name, less.seed, less.training.learning_rate) == ("less", 9, 0.5)
    assert less.training.global_batch_size == plain.training.global_batch_size
    rest = {k: v for k, v in plain.stages["ris_joint"].sources.items() if k != "d_ref"}
    assert less.stages["ris_joint"].sources == rest | {"h_sem": 3}
    assert less.stages["ris_joint"].select
    assert list(less.stages) == list(plain.stages)[:-1]
    assert less.data == plain.data


def test_null_brings_a_default_back(tmp_path: Path) -> None:
    text = "base: quickstart.yaml\nname: all\ntraining: {max_mask_prompts: null}\nlabels: null"
    all_of_them = load_curriculum(changed(tmp_path, text))
    assert all_of_them.training.max_mask_prompts is None
    assert all_of_them.labels.object_centric.method == "surgery"


def test_data_of_another_format_replaces_the_bases(tmp_path: Path) -> None:
    text = "base: quickstart.yaml\nname: own\ndata: {referring: {format: table, path: t.csv}}"
    own = load_curriculum(changed(tmp_path, text))
    assert own.data.referring.model_dump() == {"format": "table", "path": Path("t.csv")}
    assert own.data.validation.format == "toybox_scenes"


def test_a_base_may_have_a_base(tmp_path: Path) -> None:
    changed(tmp_path, "base: quickstart.yaml\nname: a\nseed: 1\nnum_buckets: 5", "a.yaml")
    last = load_curriculum(changed(tmp_path, "base: a.yaml\nname: b\nseed: 2", "b.yaml"))
    assert (last.name, last.seed, last.num_buckets) == ("b", 2, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nowhere.yaml\nname: x", r"x.yaml: base '.*nowhere.yaml' is no file"),
        ("base: x.yaml\nname: x", r"base goes in a circle: .*x.yaml -> .*x.yaml"),
        ("base: y.yaml\nname: x", r"circle: .*x.yaml -> .*y.yaml -> .*x.yaml"),
        ("base: [a]\nname: x", r"base must be the path of a YAML file, got \['a'\]"),
        ("base: quickstart.yaml", "name is missing"),
        ("base: quickstart.yaml\nname: x\ntrainin: {}", "unknown key 'trainin'"),
        ("base: list.yaml\nname: x", "list.yaml must hold a mapping"),
    ],
)
def test_what_is_wrong_with_a_base(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "y.yaml").write_text("base: x.yaml\nname: y")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match=message):
        load_curriculum(changed(tmp_path, text, "x.yaml"))


# ---------------------------------------------------------------- the paper's

PAPER = [  # Section 4.1: "we use the validation split by Google"
    ("refcoco", "unc", ("testA", "testB")),
    ("refcoco+", "unc", ("testA", "testB")),
    ("refcocog", "google", "val"),
]


@pytest.mark.parametrize(("dataset", "split_by", "split"), PAPER)
def test_the_papers_curricula(dataset: str, split_by: str, split: object) -> None:
    paper = load_curriculum(CURRICULA / "paper" / f"{dataset}.yaml")
    for role in ("referring", "validation", "evaluation"):
        data = getattr(paper.data, role)
        assert (data.dataset, data.split_by) == (dataset, split_by)
    assert paper.data.evaluation.split == split
    assert paper.data.object_centric.max_pictures == 2836
    assert (paper.training.global_batch_size, paper.training.learning_rate) == (64, 0.001)
    epochs = [stage.num_epochs * stage.rounds for stage in paper.stages.values()]
    assert (epochs[0], epochs[1] + epochs[2], epochs[3]) == (10, 30, 10)
    assert (paper.model.clip.name, paper.model.sam.name) == ("ViT-B-16-quickgelu", "vit_b")
    assert (paper.model.clip.image_size, paper.published_image_size) == (224, 512)
    sources = [set(stage.sources) for stage in paper.stages.values()]
    assert sources[0] == {"h_sem", "d_sem"}  # Eq. 5
    assert sources[2] == {"h_sem", "d_sem", "d_ref", "h_ref"}  # Eq. 6
    assert sources[3] == {"h_sem", "h_ref"}  # Eq. 7

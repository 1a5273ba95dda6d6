"""The configuration: what a user gets wrong is told by field and value."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from ppt.config import ConfigError, load_curriculum, parse_curriculum
from ppt.config.load import load_row, load_with_origins, place_of_run
from ppt.config.messages import MAX_LINES, one_line

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
        ("nonsense", "override 'nonsense': must look like"),
        ("seed.deep=1", "seed is a value, not a group"),
        (
            "stages.ris_joint.sources={h_ref: 0}",
            "sources.h_ref: input should be greater than 0, got 0",
        ),
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
        *(
            (f"name={name}", "name: must have 1 to 100 of")
            for name in (" a", "a\n", "a.", "a" * 101)
        ),
        *((f"name={name}", "is the name of something else") for name in ("store", "Ray-Tune")),
        *((f"name={name}", "cannot be a file's name on Windows") for name in ("NUL", "com1.x")),
        ("stages.results={sources: {h_sem: 1}, num_epochs: 1}", "'results' is the name of some"),
        ("stages.a/b={sources: {h_sem: 1}, num_epochs: 1}", "stages.a/b: must have 1 to 60"),
        ("stages.../../evil={sources: {h_sem: 1}, num_epochs: 1}", "no such stage"),
        ("stages.Ris_Joint={sources: {h_sem: 1}, num_epochs: 1}", "would be one file"),
        ("stages.ris_joint.kind=teacher", "ris_joint.kind: must be one of standard, got 'teacher'"),
        ("stages.nowhere=null", "no such stage"),
        ("seed=yes", "seed: input should be a valid integer, .* got 'yes'"),
        ("seed=true", "seed: input should be a valid integer, .* got 'true'"),
        ("seed=1:30", "seed: input should be a valid integer, .* got '1:30'"),
        ("seed=-1", "seed: input should be greater than or equal to 0, got -1"),
        (f"seed={2**63}", "seed: input should be less than"),
        ("resources.num_workers=true", "num_workers: must be a number from 1"),
        *((f"training.learning_rate={x}", "learning_rate: .* number") for x in (".inf", "nan")),
        *((f"stages.ris_joint.sources.h_ref={x}", "h_ref: .* number") for x in ("inf", ".nan")),
        ("num_buckets=1000000000000", "num_buckets: input should be less than or equal to 10000"),
        (
            "synthesis.num_pictures=1000000000000000",
            "num_pictures: .* less than or equal to 1000000",
        ),
        ("data.referring.num_pictures=1000000000000000", "num_pictures: .* less than or equal"),
        ("data.referring.min_objects=9", "min_objects: .* less than or equal to 8, got 9"),
        ("store=", "store: must be the path of a folder"),
        ("store=a\tb", r"store: must be the path .* got 'a\\tb'"),
        (
            "store=[1] photos",
            r"'\[1\] photos' is not a YAML value .*; quote a text that begins with",
        ),
        ("data.referring={format: table, path: a #b}", "is not a YAML value"),
        (".".join("a" * 50) + "=1", "must look like"),
        ("training.learningrate=1", "did you mean training.learning_rate?"),
        ("training.lr=1", "did you mean training.learning_rate?"),
        ("training.batch=1", "did you mean training.global_batch_size?"),
        ("model.point_generator.queries=1", "did you mean model.point_generator.num_queries?"),
        ("data.referring.numpictures=1", "did you mean data.referring.num_pictures?"),
        ("stages.ris_joint.epochs=1", "did you mean stages.ris_joint.num_epochs?"),
    ],
)
def test_what_is_wrong_is_named(quickstart: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_curriculum(quickstart, [override])


@pytest.mark.parametrize(
    "text", ["/data/a #b", "1e3", "yes", "010", "2026-01-01", "1:30", ".inf", "a: b", "@x", "- a"]
)
def test_the_text_of_an_override_is_the_text(quickstart: Path, text: str) -> None:
    assert load_curriculum(quickstart, [f"store={text}"]).store == text
    assert load_curriculum(quickstart, [f"store='{text}'"]).store == text
    if ": " not in text and " #" not in text and text[0] not in "@-":
        file = yaml.safe_load(quickstart.read_text())
        assert parse_curriculum({**file, "store": text}).store == text


def test_null_as_an_override_removes_a_stage(quickstart: Path) -> None:
    fewer = load_curriculum(quickstart, ["stages.domain_refinement=null", "training=null"])
    assert list(fewer.stages) == ["semantic_alignment", "ris_object_centric", "ris_joint"]
    assert fewer.training.global_batch_size == 64


def test_all_mistakes_are_told_at_once(quickstart: Path) -> None:
    wrong = ["stages.x.rounds=1", "nonsense", "seed=x", "num_buckets=0", "training.learningrate=1"]
    with pytest.raises(ConfigError) as caught:
        load_curriculum(quickstart, [*wrong, "store=", "stages.ris_joint.kind=x"])
    lines = str(caught.value).splitlines()
    starts = ["num_buckets: ", "override 'nonsense'", "override 'stages.x", "seed: "]
    starts += ["stages.ris_joint.kind: ", "store: ", "unknown key 'training.learningrate'"]
    assert all(s.startswith(start) for s, start in zip(sorted(lines), starts, strict=True))


def test_a_new_stage_is_given_whole(quickstart: Path) -> None:
    more = load_curriculum(quickstart, ["stages.last={sources: {h_sem: 1}, num_epochs: 1}"])
    assert list(more.stages)[-1] == "last"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no curriculum at .*nowhere.yaml"):
        load_curriculum(tmp_path / "nowhere.yaml")


def test_a_missing_path_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="data.referring.root is missing: .*data.referring.root="):
        load_curriculum(CURRICULA / "photos.yaml")


# ---------------------------------------------------------------- files

EXPANDING = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    + [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefghi")]
)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("seed: 1\nseed: 2\nname: a\nname: b", ["line 2: key 'seed' is", "line 4: key 'name' is"]),
        ("a: {b: 1, 'b': 2}", ["line 1: key 'b' is given twice"]),
        (EXPANDING, ["more than 5000 values"]),
        ("a: &a [*a]", ["line 1: more than 20 groups or lists"]),
        ("a: " + "[" * 30000, ["line 1: more than 20 groups or lists"]),
        ("- " * 10000, ["more than 20 groups or lists"]),
        ("a: 1\n" * 10000, ["more than 32768 bytes"]),
        ("a: !!python/name:os.system", ["line 1: tags such as"]),
        ("? [a]\n: 1", ["line 1: a key must be a text"]),
        ("a: b: c", ["line 1: mapping values are not allowed"]),
        ('a: "\\UFFFFFFFF"', ["cannot be read as YAML"]),
        ("a: 1\n---\nb: 1", ["line 2: expected a single document"]),
        ("", ["must hold a mapping of keys, got None"]),
    ],
)
def test_a_file_that_is_refused(tmp_path: Path, text: str, messages: list[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_curriculum(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(str(path)) and message in line


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    wrong = {
        tmp_path: "is a folder",
        Path("/dev/zero"): "is no regular file",
        tmp_path / "pipe": "is no regular file",
        tmp_path / "latin.yaml": "is no text in UTF-8: byte 6",
        tmp_path / "loop": "no curriculum at",
        tmp_path / "a\0b": "no curriculum at",
        tmp_path / ("a" * 5000): "cannot be read: File name too long",
    }
    for path, message in wrong.items():
        with pytest.raises(ConfigError, match=message) as caught:
            load_curriculum(path)
        assert len(str(caught.value).splitlines()) == 1


def test_text_is_utf8_with_or_without_a_mark(tmp_path: Path, quickstart: Path) -> None:
    (tmp_path / "a.yaml").write_text("\ufeff" + quickstart.read_text(), encoding="utf-8")
    assert load_curriculum(tmp_path / "a.yaml") == load_curriculum(quickstart)


QUICKSTART = yaml.safe_load((CURRICULA / "quickstart.yaml").read_text())


def _places(tree: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The places of all keys of a tree."""
    if not isinstance(tree, dict):
        return [place]
    return [place, *(p for key in tree for p in _places(tree[key], (*place, key)))]


TEXTS = st.text(max_size=8) | st.sampled_from(["\ud800", "inf", "1e999", "null", "yes", "9" * 5000])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
PLACES = st.sampled_from(_places(QUICKSTART))


def test_a_name_that_utf8_cannot_encode_is_told() -> None:
    tree = QUICKSTART | {"stages": {"\ud800": {"epochs": 1}}}
    with pytest.raises(ConfigError, match=r"must have 1 to 60 of A-Z") as told:
        parse_curriculum(tree)
    assert "unknown key 'stages." in str(told.value) and str(told.value).count("\n") == 3


@seed(2611)
@settings(max_examples=200, deadline=None, database=None)
@given(changes=st.lists(st.tuples(PLACES, st.none() | TEXTS, VALUES), min_size=1, max_size=6))
def test_any_tree_is_a_curriculum_or_told_in_lines(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[Any, str | None, Any]]
) -> None:
    """Values anywhere in the quickstart, in the place of others or under new keys."""
    tree: Any = json.loads(json.dumps(QUICKSTART))
    for place, new_key, value in changes:
        *parents, leaf = ["", *place] if new_key is None else ["", *place, new_key]
        node: Any = {"": tree}
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[leaf] = value
            tree = value if leaf == "" and not place and new_key is None else tree
    path = tmp_path_factory.mktemp("any") / "x.yaml"
    path.write_text(json.dumps(tree))
    for load in (lambda: parse_curriculum(tree), lambda: load_curriculum(path)):
        try:
            curriculum = load()
        except ConfigError as error:
            lines = str(error).splitlines()
            assert 1 <= len(lines) <= MAX_LINES + 1
            assert all(line.isprintable() and len(line) < 2000 for line in lines)
        else:
            assert 0 < curriculum.num_buckets <= 10_000
            assert parse_curriculum(curriculum.model_dump()) == curriculum


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


def test_a_curriculum_without_a_name_is_called_as_its_file(tmp_path: Path) -> None:
    changed(tmp_path, "base: quickstart.yaml\nname: above", "above.yaml")
    for file in ("more-epochs.yaml", "more-epochs.yml", "more-epochs"):
        path = changed(tmp_path, "base: above.yaml\nseed: 3", file)
        assert (load_curriculum(path).name, load_curriculum(path).seed) == ("more-epochs", 3)
        assert load_row(path).name == "more-epochs"
        assert place_of_run(path) == ("runs", "more-epochs")
    assert load_curriculum(path, ["name=mine"]).name == "mine"
    curriculum, origins = load_with_origins(path)
    assert (curriculum.name, origins.of(("name",))) == ("more-epochs", "default")
    with pytest.raises(ConfigError, match="name: must have 1 to 100 of .*, got 'more epochs'"):
        load_curriculum(changed(tmp_path, "base: quickstart.yaml", "more epochs.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nowhere.yaml\nname: x", r"x.yaml: base '.*nowhere.yaml' is no file"),
        ("base: x.yaml\nname: x", r"base goes in a circle: .*x.yaml -> .*x.yaml"),
        ("base: y.yaml\nname: x", r"circle: .*x.yaml -> .*y.yaml -> .*x.yaml"),
        ("base: [a]\nname: x", r"base must be the path of a YAML file, got \['a'\]"),
        ("base: quickstart.yaml\nname: x\ntrainin: {}", "unknown key 'trainin'"),
        ("base: list.yaml\nname: x", "list.yaml must hold a mapping"),
        ("base: .\nname: x", "is a folder"),
        ("base: /dev/zero\nname: x", "/dev/zero is no regular file"),
    ],
)
def test_what_is_wrong_with_a_base(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "y.yaml").write_text("base: x.yaml\nname: y")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match=message):
        load_curriculum(changed(tmp_path, text, "x.yaml"))


def test_a_long_circle_of_bases(tmp_path: Path) -> None:
    for i in range(2000):
        (tmp_path / f"{i}.yaml").write_text(f"base: {(i + 1) % 2000}.yaml")
    with pytest.raises(ConfigError, match="0.yaml: more than 20 files are each the base of anoth"):
        load_curriculum(tmp_path / "0.yaml")


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


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("the café, 狗 🐕", "the café, 狗 🐕"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x1b[31mred \x00 \x85", "\\x1b[31mred \\x00 \\x85"),
        ("half \ud800, \u2028", "half \\ud800, \\u2028"),
        ("x" * 1000, "x" * 1000),
        ("\n" * 1000, "\\n" * 250 + " ... " + "n" + "\\n" * 247),
        ("a" * 600 + "b" * 600, "a" * 500 + " ... " + "b" * 495),
    ],
)
def test_a_message_is_one_line_that_a_terminal_can_show(text: str, line: str) -> None:
    assert one_line(text) == line
    assert len(one_line(text)) <= 1000

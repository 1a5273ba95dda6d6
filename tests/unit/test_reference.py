"""`ppt config` tells what would run and where it was set; the page of all keys is the code's."""

from __future__ import annotations

from pathlib import Path

import pytest
from common import ROOT
from typer.testing import CliRunner

from ppt.config import load_curriculum
from ppt.config.load import load_with_origins
from ppt.config.named import CURRICULA
from ppt.config.reference import Key, curriculum_text, keys_of, reference_page
from ppt.jobs.cli import app

ROOTS = [f"data.{d}.root=DATA" for d in ("referring", "validation", "evaluation", "object_centric")]


def _by_place(path: Path, overrides: list[str]) -> dict[str, Key]:
    keys = keys_of(*load_with_origins(path, overrides))
    return {".".join(key.place): key for key in keys}


def test_the_page_is_what_the_code_gives() -> None:
    """If this fails: python -m ppt.config.reference > docs/configuration.md"""
    assert (ROOT / "docs" / "configuration.md").read_text() == reference_page()


def test_the_page_gives_values_defaults_and_meanings() -> None:
    page = reference_page()
    for row in (
        "| `training.learning_rate` | number > 0 | `0.001` | The learning rate (Section 4.1). |",
        "| `labels.chunker` | `rules`, `spacy` | `rules` | What finds the noun phrases",
        "| `synthesis.num_pictures` | whole number > 0, <= 1000000 | | The number of pictures",
        "| `model.clip.weights` | text or null | `null` | The path of a file",
        "| `seed` | whole number >= 0, < 2^63 | `0` |",
    ):
        assert row in page
    assert "|  |\n" not in page  # every key has a meaning


@pytest.mark.parametrize(
    "path", sorted(CURRICULA.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CURRICULA))
)
def test_what_is_printed_is_what_would_run(path: Path, tmp_path: Path) -> None:
    if path.parent.name == "sweeps":
        return
    overrides = ROOTS if path.stem == "photos" else ["seed=7"]
    curriculum, origins = load_with_origins(path, overrides)
    assert curriculum == load_curriculum(path, overrides)
    keys = keys_of(curriculum, origins)
    printed = tmp_path / "printed.yaml"
    printed.write_text(curriculum_text(keys))
    assert load_curriculum(printed) == curriculum
    assert all(key.description for key in keys)


def test_odd_values_are_printed_so_that_they_are_read_again(tmp_path: Path) -> None:
    odd = ["'null'", "a: b # c", "'{}'", "-", "päth/ü", "yes", "1e3", "'[x]'"]
    for value in odd:
        curriculum = load_curriculum("quickstart", [f"model.clip.weights={value}"])
        printed = tmp_path / "printed.yaml"
        printed.write_text(curriculum_text(keys_of(curriculum)))
        assert load_curriculum(printed).model.clip.weights == curriculum.model.clip.weights


def test_each_key_says_where_it_was_set(tmp_path: Path) -> None:
    base, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text(
        "base: quickstart\nname: base\nseed: 3\nnum_buckets: 5\n"
        "labels: { merge_iou: 0.5, max_instances: 3 }\n"
        "data: { object_centric: { format: imagenet, root: there, max_pictures: 9 } }\n"
    )
    mine.write_text("base: base.yaml\nname: mine\nseed: 4\nlabels: { merge_iou: null }\n")
    keys = _by_place(
        mine,
        [
            "store=elsewhere",
            "num_buckets=null",
            "stages.ris_joint.sources.d_sem=0.5",
            "data.validation={format: table, path: t.csv}",
        ],
    )
    told = {
        "name": (str(mine), "mine"),
        "seed": (str(mine), 4),
        "store": ("override", "elsewhere"),
        "num_buckets": ("default", 16),  # an override removed it
        "labels.merge_iou": ("default", 0.8),  # the file removed what its base sets
        "labels.max_instances": (str(base), 3),
        "data.object_centric.max_pictures": (str(base), 9),
        "data.object_centric.seed": ("default", 0),  # quickstart's is of another format
        "data.validation.path": ("override", Path("t.csv")),
        "data.referring.seed": ("quickstart.yaml", 1),
        "training.max_norm": ("default", 1.0),
    }
    assert {place: (keys[place].origin, keys[place].value) for place in told} == told
    assert keys["stages.ris_joint.sources"].origin == "quickstart.yaml, override"
    assert keys["training.max_norm"].default == 1.0


def test_the_command_prints_the_curriculum_or_all_mistakes() -> None:
    result = CliRunner().invoke(app, ["config", "quickstart", "training.learning_rate=0.5"])
    assert result.exit_code == 0
    assert (
        "  # The learning rate (Section 4.1).\n  learning_rate: 0.5  # override (default 0.001)"
        in (result.stdout)
    )
    result = CliRunner().invoke(app, ["config", "quickstart", "sed=1", "training.max_norm=-1"])
    assert result.exit_code == 2
    assert "did you mean seed?" in result.stderr and "training.max_norm" in result.stderr

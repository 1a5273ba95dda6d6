"""Curricula by name: what comes with ppt is found from anywhere, and a path is taken first."""

from __future__ import annotations

from pathlib import Path

import pytest
from common import ROOT
from typer.testing import CliRunner

from ppt.config import ConfigError, find_curriculum, load_curriculum
from ppt.config.named import CURRICULA
from ppt.experiments.ablation import load_rows
from ppt.experiments.sweep import load_sweep
from ppt.jobs.cli import app


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("quickstart", "quickstart.yaml"),
        ("paper/refcoco+", "paper/refcoco+.yaml"),
        ("refcoco+", "paper/refcoco+.yaml"),
        ("table3/row4", "ablations/table3/row4.yaml"),
    ],
)
def test_a_name_is_the_path_in_the_package_or_the_end_of_it(name: str, file: str) -> None:
    assert find_curriculum(name) == CURRICULA / file
    assert (CURRICULA / file).samefile(ROOT / "curricula" / file)


def test_rows_sweeps_and_bases_are_named_too(tmp_path: Path) -> None:
    folder = find_curriculum("table3", folder=True)
    assert [*load_rows(folder, [], None, [0])] == [f"row{n}" for n in range(1, 10)]
    assert load_sweep("stages_and_queries").curriculum.samefile(CURRICULA / "quickstart.yaml")
    Path("mine.yaml").write_text("base: quickstart\nname: mine\nseed: 5\n")
    mine = load_curriculum("mine.yaml")
    assert (mine.name, mine.seed) == ("mine", 5)
    assert mine.stages == load_curriculum("quickstart").stages


def test_a_path_is_taken_first_and_a_line_says_so() -> None:
    Path("quickstart").mkdir()  # a folder is no curriculum
    assert find_curriculum("quickstart") == CURRICULA / "quickstart.yaml"
    Path("photos").write_text("base: quickstart\nname: other\nseed: none\n")
    assert find_curriculum("photos") == Path("photos")
    result = CliRunner().invoke(app, ["train", "photos"])
    assert result.exit_code == 2
    assert "note: 'photos' is what lies here under this path, not" in result.output
    assert "seed: input should be a valid integer" in result.output


def test_a_name_that_several_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.yaml").write_text("base: quickstart\nname: same\n")
    monkeypatch.setattr("ppt.config.named.CURRICULA", tmp_path)
    with pytest.raises(ConfigError, match="several curricula: give one of a/same, b/same"):
        find_curriculum("same")
    assert find_curriculum("b/same") == tmp_path / "b" / "same.yaml"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "quikstart"], "did you mean quickstart?"),
        (["train", "curricula/quickstart.yaml"], "did you mean quickstart?"),
        (["train", "refcoc"], "did you mean refcoco?"),
        (["sweep", "stages_and_query"], "did you mean stages_and_queries?"),
        (["ablate", "table4"], "did you mean table3?"),
        (["train", "zzz"], "give the path of a YAML file or a name such as quickstart"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_one(arguments: list[str], hint: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert hint in " ".join(result.output.split())


def test_a_local_training_of_many_workers_is_refused_before_the_work(tmp_path: Path) -> None:
    store = f"store={tmp_path}/runs"
    result = CliRunner().invoke(
        app, ["train", "quickstart", "--local", "resources.num_workers=2", store]
    )
    assert result.exit_code == 2
    assert "set resources.num_workers=1" in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())

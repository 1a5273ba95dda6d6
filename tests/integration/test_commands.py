"""The command line: help that teaches, errors in a line with exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from common import ROOT
from typer.testing import CliRunner

from ppt.jobs.cli import app

QUICKSTART = str(ROOT / "curricula" / "quickstart.yaml")
PHOTOS = str(ROOT / "curricula" / "photos.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", QUICKSTART, "stages.ris_joint.epochs=3"],
            "unknown key 'stages.ris_joint.epochs'",
        ),
        (["train", QUICKSTART, "seed=many"], "seed: input should be a valid integer"),
        (["train", "nowhere.yaml"], "no curriculum at 'nowhere.yaml'"),
        (["prepare", PHOTOS], "data.referring.root is missing"),
        (["encode", QUICKSTART, "model.clip.name=ViT-B-16"], "model.clip.weights"),
        (["encode", QUICKSTART, "model.sam.name=vit_x"], "model.sam.name must be one of"),
        (
            ["train", QUICKSTART, "model_selection=best"],
            "model_selection: input should be 'last'",
        ),
        (["evaluate", QUICKSTART, "--protocol", "cvpr"], "'cvpr' is not one of"),
        (["evaluate", QUICKSTART, "--split", "train"], "'train' is not one of"),
        (
            ["evaluate", QUICKSTART, "--stage", "x"],
            "--stage: this curriculum has clip_sam_published",
        ),
    ],
)
def test_the_users_mistakes_end_with_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    roots = [f"data.{n}.root={missing}" for n in ("referring", "validation", "evaluation")]
    result = CliRunner().invoke(
        app, ["prepare", PHOTOS, *roots, f"data.object_centric.root={missing}"]
    )
    assert result.exit_code == 2
    assert str(missing) in "".join(result.output.split())
    assert "data.referring: " in result.output
    assert "Traceback" not in result.output


def test_more_than_the_cluster_has_is_an_error(cluster: None, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["prepare", QUICKSTART, f"store={tmp_path}", "resources.cpus_per_actor=64"]
    )
    assert result.exit_code == 2
    assert "resources ask for" in " ".join(result.output.split())


def test_help_names_every_command_and_how_to_override() -> None:
    text = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    for name in ("prepare", "encode", "label", "train", "select", "evaluate", "report", "predict"):
        assert name in text
    assert "KEY=VALUE" in " ".join(CliRunner().invoke(app, ["train", "--help"]).output.split())


def test_each_command_is_a_module_too() -> None:
    for name in ("prepare", "train"):
        done = subprocess.run(
            [sys.executable, "-m", f"ppt.jobs.{name}", "nowhere.yaml"],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "no curriculum at 'nowhere.yaml'" in done.stderr
        assert "Traceback" not in done.stderr


HEAVY = {"torch", "ray", "mlflow", "pyarrow", "numpy"}


@pytest.mark.parametrize(
    ("arguments", "code", "needed"),
    [
        (["--version"], 0, set()),
        (["--help"], 0, set()),
        *(([name, "--help"], 0, set()) for name in ("train", "ablate", "doctor", "submit")),
        (["evaluate", "nowhere.yaml"], 2, set()),
        (["sweep", "nowhere.yaml"], 2, set()),
        # The formats of a curriculum's data are in modules that use numpy.
        (["train", QUICKSTART, "stages.ris_joint.epochs=3"], 2, {"numpy"}),
        (["train", QUICKSTART, "stages.ris_joint.kind=teacher"], 2, {"numpy"}),
        (["submit", "train", QUICKSTART], 2, {"numpy"}),  # its store is relative
    ],
)
def test_help_and_mistakes_import_nothing_heavy(
    arguments: list[str], code: int, needed: set[str]
) -> None:
    """Each of these libraries takes up to seconds; help and a mistake are told at once."""
    program = (
        "import sys\n"
        "from ppt.jobs.cli import app\n"
        "try:\n"
        f"    app({arguments!r})\n"
        "except SystemExit as end:\n"
        f"    print(end.code, *({HEAVY!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    ended, *imported = done.stdout.splitlines()[-1].split()
    assert ended == str(code), done.stderr
    assert set(imported) <= needed

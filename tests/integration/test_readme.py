"""README's commands and examples, and the notebook: what they promise is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from common import DATA, QUICKSTART, ROOT, SMALL
from PIL import Image
from typer.testing import CliRunner

from ppt.config import load_curriculum
from ppt.curriculum.measurements import BASELINES
from ppt.downloads.published_files import FILES
from ppt.jobs.cli import app
from ppt.predict import Predictor
from ppt.serving.zero_shot import ZeroShotPredictor
from ppt.toybox import world
from ppt.tracking.record import RunRecord

README = (ROOT / "README.md").read_text()
SCENE = ROOT / "docs" / "scene.png"
LEFT_MUSHROOM = 11, 57, 41, 87  # in docs/scene.png: x0, y0, x1, y1 in pixels
BIRD = 24, 3, 62, 33


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def _commands() -> list[list[str]]:
    """The lines of README's blocks that are commands, each with its continuation lines."""
    lines = "\n".join(_blocks("")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith((".venv/bin/ppt", "make "))]


def _command(name: str, argument: str = "") -> list[str]:
    """The arguments of README's only `ppt` command of this name in which an argument occurs."""
    found = [
        arguments[1:]
        for arguments in _commands()
        if arguments[:2] == [".venv/bin/ppt", name] and (not argument or argument in arguments)
    ]
    assert len(found) == 1, f"README has {len(found)} commands {name} {argument}"
    return found[0]


def _ppt(*arguments: object, answer: str = "", code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=answer)
    assert "Traceback" not in result.output
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def _share_inside(mask: np.ndarray, box: tuple[int, int, int, int]) -> tuple[float, float]:
    """The share of a mask that lies in a box, and the share of the box that is covered."""
    x0, y0, x1, y1 = box
    inside = mask[y0:y1, x0:x1].sum()
    return inside / max(mask.sum(), 1), inside / ((x1 - x0) * (y1 - y0))


def test_every_command_is_one_that_is_tried_here() -> None:
    tried = {"install", "demo", "test", "train", "download", "predict"}
    assert {arguments[1] for arguments in _commands()} <= tried


def test_make_knows_its_targets() -> None:
    targets = [arguments[1] for arguments in _commands() if arguments[0] == "make"]
    assert {"install", "demo", "test"} <= set(targets)
    for target in targets:
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert target != "demo" or "ppt train curricula/quickstart.yaml" in done.stdout


def test_the_table_of_the_demo_has_the_rows_of_the_quickstart() -> None:
    rows = list(BASELINES)
    for name, stage in load_curriculum(QUICKSTART).stages.items():
        numbers = range(1, stage.rounds + 1)
        rows += [f"{name}.{n}" for n in numbers] if stage.rounds > 1 else [name]
    (table,) = (block for block in _blocks("") if block.startswith("quickstart: held-out split"))
    assert [line.split()[0] for line in table.splitlines()[2:]] == rows


def test_the_table_of_commands_is_whole() -> None:
    told = re.findall(r"^\| `ppt (\w+)` \|", README, re.MULTILINE)
    assert sorted(told) == sorted(str(command.name) for command in app.registered_commands)


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path = link.partition("#")[0]
            if path and "://" not in link:
                assert (page.parent / path).exists(), f"{page.name} links to {link}"


@pytest.mark.skipif(not DATA.exists(), reason="needs the shared photographs")
def test_the_data_of_the_training_command_are_read(tmp_path: Path) -> None:
    """Its data sets are prepared; tests/integration/test_photos.py trains on them."""
    command = _command("train", "curricula/photos.yaml")
    places = {"DATA/refcoco": DATA / "miniref", "DATA/imagenet": DATA / "imagenet-sample"}
    for name, place in places.items():
        command = [argument.replace(name, str(place)) for argument in command]
    settings = [f"store={tmp_path}", "resources.num_workers=1", "--local"]
    _ppt("prepare", ROOT / command[1], *command[2:], *settings)
    assert (tmp_path / "store" / "samples").is_dir()


def test_the_download_is_told_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = _command("download")
    output = _ppt(*command, answer="n\n", code=1)
    for name in command[1:]:
        assert FILES[name].size in output and FILES[name].licence in output
    assert not list(tmp_path.iterdir())


def test_masks_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without weights the command tells how to get them; with the embedded ones it makes masks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in (1, 2):
        Image.fromarray(world.scene(2, number).image).save(tmp_path / "photos" / f"{number}.png")
    command = _command("predict", "photos/")
    assert f"`ppt {shlex.join(_command('download'))}`" in _ppt(*command, code=2)
    _ppt(*command, "--clip", "toybox", "--sam", "toybox")
    texts = command[2:]
    results = json.loads((tmp_path / "predictions" / "coco.results.json").read_text())
    assert [row["sentence"] for row in results] == texts * 2
    assert len(list((tmp_path / "predictions").glob("*.mask.png"))) == 2 * len(texts)


def test_a_mask_without_training_overlaps_its_object() -> None:
    mask = ZeroShotPredictor.of("toybox", "toybox", device="cpu").predict(SCENE, "the bird").mask
    inside, covered = _share_inside(mask, BIRD)
    assert inside > 0.8 and covered > 0.3


def test_masks_of_a_trained_run(finished: RunRecord, tmp_path: Path) -> None:
    command = _command("predict", "runs/quickstart")
    places = {"docs/scene.png": str(SCENE), "runs/quickstart": finished.folder}
    _ppt(*(places.get(argument, argument) for argument in command), "--out", tmp_path)
    text = command[2]
    (path,) = tmp_path.glob("scene-*.mask.png")
    record = json.loads(Path(str(path).replace(".mask.png", ".json")).read_text())
    assert (record["expression"], record["checkpoint"]) == (
        text,
        finished.stages[-1].checkpoint.digest,
    )
    assert np.asarray(Image.open(path)).shape == (96, 96)


@pytest.mark.skipif(
    not (ROOT / "runs" / "quickstart" / "summary.json").exists(), reason="needs `make demo`"
)
def test_the_example_finds_its_object_after_the_demo() -> None:
    """The mask of README's example is the mushroom on the left, and the model is sure of it."""
    _, picture, text, *_ = _command("predict", "runs/quickstart")
    found = Predictor.from_checkpoint(ROOT / "runs" / "quickstart").predict(ROOT / picture, text)
    inside, covered = _share_inside(found.mask, LEFT_MUSHROOM)
    assert inside > 0.8 and covered > 0.4
    assert found.score > 0.5


def test_the_lines_of_python_run(finished: RunRecord, store: Path) -> None:
    """The small run is complete, so that nothing is trained again."""
    (lines,) = _blocks("python")
    changed = lines.replace(
        '"curricula/quickstart.yaml")', f'"{QUICKSTART}", {[*SMALL, f"store={store}"]})'
    )
    assert changed != lines
    exec(changed, names := {})
    assert names["record"].stages[-1].checkpoint == finished.stages[-1].checkpoint


def test_the_notebook_runs(
    finished: RunRecord, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells, with the settings of the small run, which is complete, in place of its own."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.md"))
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        lines = "".join(cell["source"])
        if "overrides = [" in lines:
            settings = f"overrides = {[*SMALL, f'store={store}']}\n"
            lines = re.sub(r"overrides = \[.*?^\]\n", settings, lines, flags=re.DOTALL | re.M)
        exec(lines, names)
    assert names["record"].stages[-1].checkpoint == finished.stages[-1].checkpoint
    assert names["prediction"].mask.shape == (96, 96)
    assert {"picture", "text", "iou", "score"} <= set(names["rows"].columns)

"""Pictures that are trained on and measured on: found by their content, under any name."""

from __future__ import annotations

from pathlib import Path

import pytest
from common import QUICKSTART, run_here
from PIL import Image

from ppt.config import Data, load_curriculum
from ppt.data.shared_pictures import shared_pictures


def table(folder: Path, *pictures: bytes) -> str:
    """A data set with a mask for each picture, given as its override."""
    folder.mkdir()
    lines = ["picture,expression,polygon"]
    for number, content in enumerate(pictures):
        (folder / f"{number}.bmp").write_bytes(content)
        lines.append(f'{number}.bmp,a thing,"[1, 1, 9, 1, 9, 9]"')
    (folder / "t.csv").write_text("\n".join(lines))
    return f"{{format: table, path: {folder / 't.csv'}}}"


def data(*overrides: str) -> Data:
    return load_curriculum(QUICKSTART, [f"data.{override}" for override in overrides]).data


def bmp(path: Path, colour: int) -> bytes:
    """A picture of the same number of bytes for each colour."""
    Image.new("RGB", (10, 10), (colour, 0, 0)).save(path)
    return path.read_bytes()


def test_the_same_files_are_counted_under_any_name(tmp_path: Path) -> None:
    one, two, three = (bmp(tmp_path / "p.bmp", colour) for colour in (1, 2, 3))
    assert len(one) == len(two)
    train = table(tmp_path / "train", one, two, one)
    test = table(tmp_path / "test", three, two, one, b"no picture")
    (told,) = shared_pictures(data(f"referring={train}", f"evaluation={test}"))
    assert told.startswith("2 of the 4 pictures of data.evaluation are in data.referring too: ")
    (told,) = shared_pictures(data(f"referring={train}", f"validation={train}"))
    assert told.startswith("3 of the 3 pictures of data.validation are in data.referring too: ")


def test_equal_sizes_names_and_drawn_pictures_are_not_the_same(tmp_path: Path) -> None:
    one, two = (bmp(tmp_path / "p.bmp", colour) for colour in (1, 2))
    train, test = table(tmp_path / "train", one), table(tmp_path / "test", two)
    assert shared_pictures(data(f"referring={train}", f"evaluation={test}")) == ()
    assert shared_pictures(data(f"referring={train}")) == ()
    assert shared_pictures(data()) == ()


def test_doubts_about_the_figures_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Begun(Exception):
        pass

    def begin(*_: object, **__: object) -> None:
        raise Begun

    monkeypatch.setattr("ppt.curriculum.run.make_inputs", begin)
    given = table(tmp_path / "own", bmp(tmp_path / "p.bmp", 1))
    overrides = [f"data.{role}={given}" for role in ("referring", "evaluation")]
    with pytest.raises(Begun):
        run_here(load_curriculum(QUICKSTART, [*overrides, f"store={tmp_path}"]))
    told = capsys.readouterr().err
    assert "warning: model.clip and model.sam: the embedded world's" in told
    assert told.count("1 of the 1 pictures of data.evaluation are in data.referring too") == 1

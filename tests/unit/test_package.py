"""The wheel is whole: every module, the commands, the curricula, the pins, and only `ppt`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from common import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what the repository holds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("ppt", "jobs", "curricula"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    program = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_all_and_takes_no_other_name(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"ppt"}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ppt").rglob("*.py")}
    for folder, suffix in (("jobs", "*.py"), ("curricula", "*.yaml")):
        found = (ROOT / folder).rglob(suffix)
        expected |= {f"ppt/{path.relative_to(ROOT).as_posix()}" for path in found}
    for pattern in ("*/*.jinja", "toybox/weights/*", "py.typed", "constraints.txt"):
        expected |= {
            f"ppt/{path.relative_to(ROOT / 'ppt')}" for path in (ROOT / "ppt").glob(pattern)
        }
    assert names == expected


def test_the_commands_of_the_wheel_find_its_curricula(wheel: Path, tmp_path: Path) -> None:
    """`ppt.jobs` is imported from the wheel alone, in an empty folder."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    program = "import sys; from ppt.jobs.cli import app; assert 'jobs' not in sys.modules; "
    program += "app(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "quickstart", "seed=none"],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: seed: input should be a valid integer, unable to parse string as an integer, "
        "got 'none'\n",
    )

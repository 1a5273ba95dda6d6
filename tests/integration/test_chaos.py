"""The short form of `make chaos`."""

from __future__ import annotations

import os
import subprocess
import sys

from common import ROOT


def test_killed_runs_and_runs_at_once_end_in_the_same_bytes() -> None:
    """A finished run, two that are killed and go on, and two that begin at once, without Ray."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    command = [sys.executable, "-m", "chaos", "--short", "--seed", "1"]
    end = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert end.returncode == 0, end.stdout + end.stderr
    assert end.stdout.count("  held ") == 3

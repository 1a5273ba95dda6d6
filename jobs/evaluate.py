"""Measure the baselines and every trained stage on the held-out split.

ppt evaluate curricula/quickstart.yaml
"""

from __future__ import annotations

from jobs.common import CurriculumPath, Overrides, command, finish, load, run_alone
from ppt.pipeline.curriculum import run_curriculum


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None) -> None:
    """Measure every stage on the held-out split; nothing is trained."""
    finish(run_curriculum(load(curriculum, overrides), train=False))


if __name__ == "__main__":
    run_alone(main)

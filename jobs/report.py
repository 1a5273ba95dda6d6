"""Write a run's page again.

ppt report curricula/quickstart.yaml
"""

from __future__ import annotations

from jobs.common import CurriculumPath, Overrides, command, finish, load, run_alone
from ppt.pipeline.curriculum import run_curriculum


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None) -> None:
    """Write the report of a run whose stages are trained."""
    finish(run_curriculum(load(curriculum, overrides), train=False))


if __name__ == "__main__":
    run_alone(main)

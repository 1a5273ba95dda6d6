"""Write a run's page and summary again.

ppt report curricula/quickstart.yaml
"""

from __future__ import annotations

from jobs.common import CurriculumPath, Overrides, command, load, run_alone, say_places
from ppt.pipeline.curriculum import run_curriculum


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None) -> None:
    """Write the page and summary.json of a run whose stages are trained."""
    say_places(run_curriculum(load(curriculum, overrides), train=False))


if __name__ == "__main__":
    run_alone(main)

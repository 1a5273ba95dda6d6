"""Write a run's page and summary again.

ppt report quickstart
"""

from __future__ import annotations

from .common import CurriculumPath, Local, Overrides, command, run, run_alone, say_places


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None, local: Local = False) -> None:
    """Write the page and summary.json of a run whose stages are trained."""
    say_places(run(curriculum, overrides, local=local, train=False))


if __name__ == "__main__":
    run_alone(main)

"""Read the data sets, check every picture and expression, quarantine what is broken.

ppt prepare curricula/quickstart.yaml
"""

from __future__ import annotations

from jobs.common import CurriculumPath, Overrides, command, load, run_alone
from jobs.tables import print_counts
from ppt.pipeline.curriculum import run_curriculum


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None) -> None:
    """Read the data sets into samples; quarantine what is broken, with reasons."""
    print_counts(run_curriculum(load(curriculum, overrides), until="prepare"))


if __name__ == "__main__":
    run_alone(main)

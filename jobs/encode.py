"""One frozen CLIP pass and one frozen SAM pass for every unique picture.

ppt encode curricula/quickstart.yaml
"""

from __future__ import annotations

from jobs.common import CurriculumPath, Overrides, command, load, run_alone
from jobs.tables import print_counts
from ppt.pipeline.curriculum import run_curriculum


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None) -> None:
    """Encode every picture and text once with the frozen CLIP and SAM (after prepare)."""
    print_counts(run_curriculum(load(curriculum, overrides), until="encode"))


if __name__ == "__main__":
    run_alone(main)

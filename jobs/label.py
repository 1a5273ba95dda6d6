"""Pseudo labels of D_sem and H by CLIP and SAM, and D_ref made of D_sem's pictures.

ppt label curricula/quickstart.yaml
"""

from __future__ import annotations

from jobs.common import CurriculumPath, Overrides, command, load, run_alone
from jobs.tables import print_counts
from ppt.pipeline.curriculum import run_curriculum


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None) -> None:
    """Make the pseudo labels and the synthesised D_ref (after prepare and encode)."""
    print_counts(run_curriculum(load(curriculum, overrides), until="label"))


if __name__ == "__main__":
    run_alone(main)

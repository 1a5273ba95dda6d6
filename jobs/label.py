"""Make the pseudo labels of D_sem and H with CLIP and SAM, and D_ref from D_sem's pictures.

ppt label quickstart
"""

from __future__ import annotations

from .common import CurriculumPath, Local, Overrides, command, run_alone, run_until
from .counts import print_counts


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None, local: Local = False) -> None:
    """Make the pseudo labels and the synthesised D_ref (includes `prepare` and `encode`)."""
    print_counts(run_until("label", curriculum, overrides, local=local))


if __name__ == "__main__":
    run_alone(main)

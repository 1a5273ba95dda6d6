"""Encode every unique picture and text once with the frozen CLIP and SAM.

ppt encode quickstart
"""

from __future__ import annotations

from .common import CurriculumPath, Local, Overrides, command, run, run_alone
from .counts import print_counts


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None, local: Local = False) -> None:
    """Encode every picture and text once with the frozen CLIP and SAM (includes `prepare`)."""
    print_counts(run(curriculum, overrides, local=local, until="encode"))


if __name__ == "__main__":
    run_alone(main)

"""Encode every unique picture and text once with the frozen CLIP and SAM.

ppt encode quickstart
"""

from __future__ import annotations

from .common import CurriculumPath, Local, Overrides, command, run_alone, run_until
from .counts import print_counts


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None, local: Local = False) -> None:
    """Encode every picture and text once with the frozen CLIP and SAM (includes `prepare`)."""
    print_counts(run_until("encode", curriculum, overrides, local=local))


if __name__ == "__main__":
    run_alone(main)

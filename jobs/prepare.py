"""Read the data sets, check every picture and expression, and quarantine what is broken.

ppt prepare quickstart
"""

from __future__ import annotations

from .common import CurriculumPath, Local, Overrides, command, run_alone, run_until
from .counts import print_counts


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None, local: Local = False) -> None:
    """Read the data sets into samples, and put what is broken into quarantine with the reason."""
    print_counts(run_until("prepare", curriculum, overrides, local=local))


if __name__ == "__main__":
    run_alone(main)

"""Encode every unique picture and text once with the frozen CLIP and SAM.

ppt encode curricula/quickstart.yaml
"""

from __future__ import annotations

from jobs.common import CurriculumPath, Local, Overrides, command, run, run_alone
from jobs.counts import print_counts


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None, local: Local = False) -> None:
    """Encode every picture and text once with the frozen CLIP and SAM (includes `prepare`)."""
    print_counts(run(curriculum, overrides, local=local, until="encode"))


if __name__ == "__main__":
    run_alone(main)

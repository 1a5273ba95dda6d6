"""The whole curriculum: from raw pictures to a trained point generator and its report.

ppt train curricula/quickstart.yaml
ppt train curricula/quickstart.yaml stages.semantic_alignment.num_epochs=1 name=short
"""

from __future__ import annotations

from jobs.common import CurriculumPath, Overrides, command, finish, load, run_alone
from ppt.pipeline.curriculum import run_curriculum


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None) -> None:
    """Run the whole curriculum: prepare, encode, label, train every stage, evaluate, report."""
    finish(run_curriculum(load(curriculum, overrides)))


if __name__ == "__main__":
    run_alone(main)

"""Run a whole curriculum: from raw pictures to a trained point generator and its report.

ppt train quickstart
ppt train quickstart stages.semantic_alignment.num_epochs=1 name=short
ppt train quickstart --local
ppt train quickstart --again ris_joint
"""

from __future__ import annotations

from typing import Annotated

import typer

from .common import (
    CurriculumPath,
    Local,
    Overrides,
    command,
    load,
    open_runner,
    out,
    run_alone,
    say_places,
)


@command
def main(
    curriculum: CurriculumPath,
    overrides: Overrides = None,
    local: Local = False,
    again: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Make a stage or a step (e.g. ris_joint, label) anew, with all that follows.",
        ),
    ] = None,
) -> None:
    """Run the whole curriculum: prepare, encode, label, train every stage, evaluate, report."""
    loaded = load(curriculum, overrides)
    from ppt.curriculum.run import run_curriculum, run_curriculum_again
    from ppt.tracking.summary import print_summary, summarise

    with open_runner(loaded, local=local) as runner:
        if again:
            record = run_curriculum_again(loaded, runner, again)
        else:
            record = run_curriculum(loaded, runner)
    print_summary(summarise(record), out())
    say_places(record)


if __name__ == "__main__":
    run_alone(main)

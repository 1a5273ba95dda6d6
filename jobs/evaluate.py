"""Measure the CLIP+SAM baselines and the trained stages, sentence by sentence.

ppt evaluate quickstart
ppt evaluate runs/quickstart
ppt evaluate quickstart --stage ris_joint --split validation --protocol lavt
ppt evaluate quickstart --stage clip_sam_best
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .common import (
    Local,
    Overrides,
    RunPath,
    command,
    load_trained,
    open_runner,
    out,
    run_alone,
    say,
)


@command
def main(
    run: RunPath,
    overrides: Overrides = None,
    stage: Annotated[
        str | None,
        typer.Option(
            help="A stage or a round, e.g. ris_joint, or a baseline, e.g. clip_sam_best, which "
            "needs no training; by default all of them."
        ),
    ] = None,
    split: Annotated[
        Literal["validation", "evaluation"], typer.Option(help="The split to measure on.")
    ] = "evaluation",
    protocol: Annotated[
        Literal["ours", "lavt", "cris"],
        typer.Option(
            help="How sentences are scored: ours, or that of other work (docs/evaluation.md)."
        ),
    ] = "ours",
    local: Local = False,
) -> None:
    """Measure the baselines and the trained stages; print a table, and write Parquet files."""
    loaded, folder = load_trained(run, overrides)
    from ppt.curriculum.finished import evaluate_curriculum
    from ppt.evaluation.protocols import PROTOCOLS
    from ppt.tracking.results import results_folder
    from ppt.tracking.summary import print_evaluation, summarise

    with open_runner(loaded, local=local, trains=False) as runner:
        record = evaluate_curriculum(
            loaded,
            runner,
            stage=stage,
            split=split,
            protocol=PROTOCOLS[protocol],
            folder=folder,
        )
    print_evaluation(summarise(record), out())
    say(f"results: {results_folder(record)}")


if __name__ == "__main__":
    run_alone(main)

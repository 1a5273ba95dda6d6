"""Measure the CLIP+SAM baselines and the trained stages, sentence by sentence.

ppt evaluate curricula/quickstart.yaml
ppt evaluate curricula/quickstart.yaml --stage ris_joint --split validation --protocol lavt
ppt evaluate curricula/quickstart.yaml --stage clip_sam_best
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jobs.common import CurriculumPath, Overrides, command, load, out, run_alone, say
from ppt.pipeline.curriculum import Split, evaluate_curriculum
from ppt.pipeline.export import results_folder
from ppt.pipeline.summary import print_evaluation, summarise
from ppt.protocols import PROTOCOLS


@command
def main(
    curriculum: CurriculumPath,
    overrides: Overrides = None,
    stage: Annotated[
        str | None,
        typer.Option(
            help="A stage or a round, e.g. ris_joint, or a baseline, e.g. clip_sam_best, for which "
            "nothing need be trained; else all."
        ),
    ] = None,
    split: Annotated[Split, typer.Option(help="What to measure on.")] = "evaluation",
    protocol: Annotated[
        Literal["ours", "lavt", "cris"],
        typer.Option(
            help="How sentences are scored: ours, or as peers do it (docs/evaluation.md)."
        ),
    ] = "ours",
) -> None:
    """Measure the baselines and the trained stages: a table, and a Parquet file for each."""
    record = evaluate_curriculum(
        load(curriculum, overrides),
        stage=stage,
        split=split,
        protocol=PROTOCOLS[protocol],
    )
    print_evaluation(summarise(record), out())
    say(f"results: {results_folder(record)}")


if __name__ == "__main__":
    run_alone(main)

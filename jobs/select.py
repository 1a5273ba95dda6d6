"""Select: the pseudo-referents that a trained stage chooses among H_ref's candidates (Eq. 6, 7).

ppt select curricula/quickstart.yaml --after ris_object_centric
"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.common import CurriculumPath, Overrides, command, load, run_alone
from ppt.pipeline.curriculum import select_after


@command
def main(
    curriculum: CurriculumPath,
    overrides: Overrides = None,
    after: Annotated[
        str, typer.Option(help="The trained stage that selects, e.g. ris_object_centric.")
    ] = "ris_object_centric",
) -> None:
    """Choose the referents of H_ref with a stage that is trained already."""
    labels = select_after(load(curriculum, overrides), after)
    info = labels.info()
    typer.echo(
        f"{info['selected']} expressions of H_ref have a referent, {info['undecided']} stay "
        f"undecided: {labels.folder}"
    )


if __name__ == "__main__":
    run_alone(main)

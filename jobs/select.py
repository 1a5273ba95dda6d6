"""Select: choose the referents among H_ref's candidates with a trained stage (Eq. 6 and 7).

ppt select quickstart --after ris_object_centric
"""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Local, Overrides, RunPath, command, load_trained, open_runner, run_alone


@command
def main(
    run: RunPath,
    overrides: Overrides = None,
    after: Annotated[
        str, typer.Option(help="The trained stage that selects, e.g. ris_object_centric.")
    ] = "ris_object_centric",
    local: Local = False,
) -> None:
    """Choose the referents of H_ref with a stage that is trained already."""
    loaded, _ = load_trained(run, overrides)
    from ppt.curriculum.finished import select_after

    with open_runner(loaded, local=local, trains=False) as runner:
        labels = select_after(loaded, runner, after)
    info = labels.info()
    typer.echo(
        f"{info['selected']} expressions of H_ref have a new referent, {info['unselected']} keep "
        f"the scores that they had: {labels.folder}"
    )


if __name__ == "__main__":
    run_alone(main)

"""Run a curriculum with many settings by Ray Tune; what the runs have in common is made once.

ppt sweep stages_and_queries
ppt sweep stages_and_queries --resume
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Overrides, command, find, interrupted, out, run_alone, say

SweepPath = Annotated[
    Path,
    typer.Argument(metavar="SWEEP", help="A YAML file, or a name, e.g. stages_and_queries."),
]


@command
def main(
    sweep: SweepPath,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a sweep that was interrupted.")
    ] = False,
) -> None:
    """Run a curriculum with every setting of a sweep. A stage that trials share is trained once.

    Overrides change the curriculum of all trials. The best trial is chosen without ground truth.
    """
    from ppt.experiments.sweep import load_sweep

    loaded = load_sweep(find(sweep))
    from ppt.distributed.tune import run_sweep
    from ppt.experiments.sweep_results import PICTURE, SUMMARY, TABLE, print_sweep

    try:
        record = run_sweep(loaded, overrides or [], resume=resume)
    except KeyboardInterrupt as error:
        say("interrupted: the same command with --resume goes on from here")
        raise interrupted(error) from None
    print_sweep(record, out())
    for name, file in (("sweep:  ", SUMMARY), ("trials: ", TABLE), ("picture:", PICTURE)):
        say(f"{name} {record.folder}/{file}")
    if any(trial.status == "failed" for trial in record.trials):
        say("[bold red]some trials failed:[/] the same command with --resume tries them again")
        raise typer.Exit(1)


if __name__ == "__main__":
    run_alone(main)

"""Many runs of one curriculum that share what they have in common, by Ray Tune.

ppt sweep curricula/sweeps/stages_and_queries.yaml
ppt sweep curricula/sweeps/stages_and_queries.yaml --resume
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.common import Overrides, command, run_alone, say
from ppt.pipeline.sweep import PICTURE, SUMMARY, TABLE, load_sweep, print_sweep, run_sweep

FILE_WIDTH = 160
"""A file has no width, and the 80 that rich takes then break the keys' names."""

SweepPath = Annotated[
    Path,
    typer.Argument(metavar="SWEEP", help="A YAML file, e.g. curricula/sweeps/NAME.yaml."),
]


@command
def main(
    sweep: SweepPath,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a sweep that was interrupted.")
    ] = False,
) -> None:
    """Run a curriculum with every setting of a sweep; no stage that trials share is trained twice.

    Overrides change the curriculum of all trials. The best trial is chosen without ground truth.
    """
    record = run_sweep(load_sweep(sweep), overrides or [], resume=resume)
    print_sweep(record, Console(width=None if sys.stdout.isatty() else FILE_WIDTH))
    for name, file in (("sweep:  ", SUMMARY), ("trials: ", TABLE), ("picture:", PICTURE)):
        say(f"{name} {record.folder}/{file}")
    if any(trial.status == "failed" for trial in record.trials):
        say("[bold red]some trials failed:[/] the same command with --resume tries them again")
        raise typer.Exit(1)


if __name__ == "__main__":
    run_alone(main)

"""`ppt`: all commands under one name."""

from __future__ import annotations

from typing import Annotated

import typer

import ppt

from . import submit
from .commands import add_commands

_HELP = (
    "Weakly supervised referring image segmentation by point prompting, on Ray.\n\n"
    "Most commands take a curriculum (a YAML file) and KEY=VALUE overrides. They skip what is "
    "done already, so running a command again continues where it stopped. `ppt train` runs the "
    "whole curriculum, `ppt predict` uses the trained model, `ppt doctor` says what is missing, "
    "and `ppt submit` runs a command on a cluster. "
    "RAY_ADDRESS names the cluster (by default this machine), and MLFLOW_TRACKING_URI the "
    "tracking server (by default an SQLite file in the run's folder)."
)

app = typer.Typer(
    name="ppt",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _print_version(asked: bool) -> None:
    """Print the version and exit, if asked."""
    if asked:
        typer.echo(f"ppt {ppt.__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Define the options of `ppt` itself; the commands do everything else."""


add_commands(app)
app.command(name="submit", context_settings=submit.SETTINGS)(submit.main)

if __name__ == "__main__":
    app(prog_name="ppt")

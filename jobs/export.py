"""Write a trained stage as a folder that travels, and log it as a model in MLflow.

ppt export runs/quickstart --out quickstart-model
ppt export runs/quickstart --register quickstart
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ppt.config import ConfigError

from .common import RunStage, command, run_alone, say


@command
def main(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a finished run (runs/NAME).")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write, which must be new or empty.")
    ] = None,
    stage: RunStage = None,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="Log the model into the run's MLflow run.")
    ] = False,
    register: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Log the model, and register it under this name."),
    ] = None,
) -> None:
    """Write a trained stage as a folder with its model card, or log it as a model in MLflow."""
    if out is None and not mlflow and register is None:
        raise ConfigError("give --out FOLDER, --mlflow or --register NAME")
    if register is not None and (not register.strip(" .") or set(register) & set("/:")):
        raise ConfigError(
            f"--register: {register!r} is no name of a model in MLflow, which has no '/' and no ':'"
            " and is not empty: give another name"
        )
    from ppt.serving.export import export_model

    with tempfile.TemporaryDirectory() as temporary:
        folder = export_model(run, out or Path(temporary, "model"), stage)
        if out is not None:
            say(f"model: {out}, its card: {out / 'README.md'}")
        if mlflow or register is not None:
            from ppt.serving.mlflow_model import log_model

            say(f"MLflow: {log_model(folder, run, register)}")


if __name__ == "__main__":
    run_alone(main)

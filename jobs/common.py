"""What the commands share: their arguments, and errors as one clear line with exit code 2."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ppt.config import ConfigError, Curriculum, load_curriculum
from ppt.pipeline.progress import console
from ppt.pipeline.record import RunRecord
from ppt.pipeline.summary import print_summary, summarise
from ppt.pipeline.tracking import tracking_uri

CurriculumPath = Annotated[
    Path, typer.Argument(metavar="CURRICULUM", help="A YAML file, e.g. curricula/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides, e.g. stages.semantic_alignment.num_epochs=2 or store=s3://bucket/runs.",
    ),
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose ConfigErrors are the user's: told in a line, exit code 2, no traceback."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except ConfigError as error:
            for line in str(error).splitlines():
                say(f"[bold red]error:[/] {escape(line)}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            say("interrupted: run the same command again to go on from here")
            raise typer.Exit(130) from None

    return guarded


def load(path: Path, overrides: list[str] | None) -> Curriculum:
    return load_curriculum(path, overrides or [])


def finish(record: RunRecord) -> None:
    """The end of a run: its table, and where to look next."""
    print_summary(summarise(record), out())
    say_places(record)


FILE_WIDTH = 160


def out() -> Console:
    """Where tables go. A file has no width, and the 80 that rich takes then break names apart."""
    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH)


def say_places(record: RunRecord) -> None:
    """Where a run's page, summary, results and MLflow runs are."""
    say(f"report:  {record.home}/report.html")
    say(f"summary: {record.home}/summary.json")
    say(f"results: {record.home}/results")
    say(f"MLflow:  {mlflow_ui(tracking_uri(record.folder))}")


def mlflow_ui(uri: str) -> str:
    """The command that shows the runs, as it works from this shell."""
    found = shutil.which("mlflow")
    program = "mlflow" if found else os.path.relpath(Path(sys.executable).parent / "mlflow")
    return f"{program} ui --backend-store-uri {uri}"


def run_alone(function: Callable[..., None], settings: dict[str, Any] | None = None) -> None:
    """`python -m jobs.<name>`: the command by itself, with click's context settings if any."""
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    app.command(context_settings=settings)(function)
    app(prog_name=f"python -m jobs.{Path(sys.argv[0]).stem}")


def say(text: str) -> None:
    """A line for the user, on the error stream: the output stream is for results."""
    console.print(text, highlight=False, soft_wrap=True)

"""The common parts of the commands: their arguments, their runner and their error messages.

A command imports heavy libraries (torch, Ray, MLflow) inside its function, after it has checked its
arguments. `--help` and a mistake in the arguments are therefore answered at once.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ppt.config import ConfigError, Curriculum, load_curriculum
from ppt.config.messages import one_line
from ppt.steps.progress import console
from ppt.store.disk import disk_fault

if TYPE_CHECKING:
    from ppt.steps.runner import Runner
    from ppt.tracking.record import RunRecord

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
Local = Annotated[
    bool, typer.Option("--local", help="Run in this process, without Ray; the digests are equal.")
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that it reports a ConfigError, or a disk that fails, to the user.

    Each line of the message is printed without a traceback, and the exit code is 2. Ctrl-C gives
    130.
    """

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except ConfigError as error:
            for line in str(error).splitlines():
                say(f"[bold red]error:[/] {escape(one_line(line))}")
            raise typer.Exit(2) from None
        except OSError as error:
            told = disk_fault(error)
            if told is None:
                raise
            say(f"[bold red]error:[/] {escape(str(told))}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            say("interrupted: run the same command again to go on from here")
            raise typer.Exit(130) from None

    return guarded


def load(path: Path, overrides: list[str] | None) -> Curriculum:
    """Load a curriculum with its overrides, and check that its data sets can be opened.

    This comes before torch is imported, so that a wrong key or a missing file is told at once.
    """
    curriculum = load_curriculum(path, overrides or [])
    from ppt.data.source import check_data_sets

    check_data_sets(curriculum.data)
    return curriculum


@contextmanager
def open_runner(curriculum: Curriculum, *, local: bool = False) -> Iterator[Runner]:
    """Open the runner of a curriculum: on Ray, or with `local` in this process."""
    if local:
        from ppt.steps.local_runner import LocalRunner
        from ppt.store.nodes import Store

        yield LocalRunner(Store(curriculum.store), curriculum.resources)
        return
    from ppt.distributed.ray_runner import ray_runner

    with ray_runner(curriculum) as runner:
        yield runner


def run(
    path: Path, overrides: list[str] | None, *, local: bool = False, **options: Any
) -> RunRecord:
    """Load a curriculum and run it. `options` are passed to `run_curriculum`."""
    curriculum = load(path, overrides)
    from ppt.curriculum.run import run_curriculum

    with open_runner(curriculum, local=local) as runner:
        return run_curriculum(curriculum, runner, **options)


FILE_WIDTH = 160
"""The width of tables in a file, in characters."""


def out() -> Console:
    """Return the console for tables. In a file they are wide enough not to break names apart."""
    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH)


def say_places(record: RunRecord) -> None:
    """Print where a run's page, summary, results and MLflow runs are."""
    from ppt.tracking.mlflow_runs import tracking_uri

    say(f"report:  {record.home}/report.html")
    say(f"summary: {record.home}/summary.json")
    say(f"results: {record.home}/results")
    say(f"MLflow:  {mlflow_ui(tracking_uri(record.folder))}")


def mlflow_ui(uri: str) -> str:
    """Return the command that shows the MLflow runs, as it works from this shell."""
    found = shutil.which("mlflow")
    program = "mlflow" if found else os.path.relpath(Path(sys.executable).parent / "mlflow")
    return f"{program} ui --backend-store-uri {uri}"


def run_alone(function: Callable[..., None], settings: dict[str, Any] | None = None) -> None:
    """Run one command as `python -m jobs.<name>`.

    `settings` are click's context settings.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    app.command(context_settings=settings)(function)
    app(prog_name=f"python -m jobs.{Path(sys.argv[0]).stem}")


def say(text: str) -> None:
    """Print a line for the user on the error stream; the output stream is for results."""
    console.print(text, highlight=False, soft_wrap=True)

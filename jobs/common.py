"""The common parts of the commands: their arguments, their runner and their error messages.

A command imports heavy libraries (torch, Ray, MLflow) inside its function, after it has checked its
arguments. `--help` and a mistake in the arguments are therefore answered at once.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from ppt.config import ConfigError, Curriculum, find_curriculum, load_curriculum
from ppt.config.load import RUN_CURRICULUM, load_run, place_of_run, run_around
from ppt.config.messages import one_line
from ppt.config.named import named_curriculum, near_curricula
from ppt.steps.progress import console
from ppt.store.disk import disk_fault

if TYPE_CHECKING:
    from ppt.steps.runner import Runner
    from ppt.tracking.folder import RunFolder
    from ppt.tracking.record import RunRecord

RunPath = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="The folder of a run (runs/NAME), or the curriculum with which it was trained.",
    ),
]
CurriculumPath = Annotated[
    Path,
    typer.Argument(
        metavar="CURRICULUM", help="A YAML file, or the name of a curriculum, e.g. quickstart."
    ),
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
TrainedRun = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="The folder of a finished run (runs/NAME) or a checkpoint."),
]
RunStage = Annotated[
    str | None,
    typer.Option("--stage", help="A stage of the run, e.g. ris_joint; by default the chosen one."),
]
ClipWeights = Annotated[
    Path | None,
    typer.Option("--clip-weights", help="CLIP's weights, if not where they were in training."),
]
SamWeights = Annotated[
    Path | None,
    typer.Option("--sam-weights", help="SAM's weights, if not where they were in training."),
]
Host = Annotated[
    str, typer.Option("--host", help="The address to listen on; 0.0.0.0 is all of this machine's.")
]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The port to listen on.")]


class Terminated(KeyboardInterrupt):
    """SIGTERM, with which `kill` and the schedulers of clusters end a command."""


def interrupted(error: KeyboardInterrupt) -> typer.Exit:
    """Return the end of a command that was interrupted, with a shell's exit code for its signal."""
    number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
    return typer.Exit(128 + number)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that it reports a ConfigError, or a disk that fails, to the user.

    Each line of the message is printed without a traceback, and the exit code is 2. Ctrl-C gives
    130, and SIGTERM 143.
    """

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            with _terminable():
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
        except KeyboardInterrupt as error:
            say("interrupted: run the same command again to go on from here")
            raise interrupted(error) from None

    return guarded


@contextmanager
def _terminable() -> Iterator[None]:
    """A context in which SIGTERM raises `Terminated`."""

    def terminate(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def find(path: Path, *, folder: bool = False) -> Path:
    """Return the path of a curriculum that is given by its path or its name.

    What is both is taken as a path, and a line says so. `folder` is as for `find_curriculum`.
    """
    found = find_curriculum(path, folder=folder)
    if found == path and os.path.exists(path):
        other = named_curriculum(path, folder=folder)
        if other and other.resolve() != found.resolve():
            text = f"{str(path)!r} is what lies here under this path, not {other} of this name"
            say(f"[yellow]note:[/] {escape(text)}")
    return found


def load(path: Path, overrides: list[str] | None) -> Curriculum:
    """Load a curriculum with its overrides, and check that its data sets can be opened.

    This comes before torch is imported, so that a wrong key or a missing file is told at once.
    """
    return _checked(load_curriculum(find(path), overrides or []))


def load_trained(path: Path, overrides: list[str] | None) -> tuple[Curriculum, RunFolder]:
    """Load the curriculum of a run as it was trained, which the run's folder knows.

    Args:
        path: the run's folder, or a curriculum whose `store` and `name` lead to it.
        overrides: what is to differ from what was trained.

    Returns:
        The curriculum and the run's folder. Where no run was trained, the curriculum is that of
        `path`.
    """
    given = overrides or []
    if os.path.isfile(path / RUN_CURRICULUM):
        curriculum = load_run(Path(os.path.abspath(path)), given)
        return _checked(curriculum), folder_at(curriculum, path)
    found = find(path)
    if not found.is_file() or run_around(path):
        raise ConfigError(_no_run(path))
    place = place_of_run(found, given)
    if place is None:  # a mistake in the overrides, which the next line tells
        place = (asked := load_curriculum(found, given)).store, asked.name
    from ppt.store.nodes import Store
    from ppt.tracking.folder import RunFolder

    folder = RunFolder(Store(place[0]), place[1])
    if not folder.fetched(RUN_CURRICULUM):
        return _checked(load_curriculum(found, given)), folder
    curriculum = load_run(Path(folder.path), given, place[0])
    _say_differences(found, given, curriculum, folder)
    return _checked(curriculum), folder


def _no_run(path: Path) -> str:
    """Return what is wrong with a path at which there is neither a run nor a curriculum."""
    from ppt.store.given import instead_of, runs_in

    told = f"no run and no curriculum at {str(path)!r}"
    runs = runs_in(path if path.is_dir() else path.parent)
    hint = "" if path.exists() else near_curricula(path)
    todo = hint or f": give the folder of a run (runs/NAME) or a curriculum{runs}"
    return told + (instead_of("run", path) or todo)


def required_run(checkpoint: Path | None) -> Path:
    """Return the folder that --checkpoint gave.

    Raises ConfigError without it, and lists the runs that are here, which typer could not do.
    """
    if checkpoint is None:
        from ppt.store.given import runs_in

        raise ConfigError(f"give --checkpoint RUN, the folder of a run{runs_in(Path('runs'))}")
    return checkpoint


def folder_at(curriculum: Curriculum, path: Path) -> RunFolder:
    """Return the folder of a run that lies at `path`, in its store or moved away from it.

    Raises ConfigError if there is no store from which the run's tables and checkpoints can be read.
    """
    from ppt.store.nodes import Store
    from ppt.tracking.folder import RunFolder

    folder = RunFolder(Store(curriculum.store), curriculum.name)
    here = os.path.abspath(path)
    if folder.store.is_local and not os.path.isdir(f"{folder.store.path}/store"):
        raise ConfigError(
            f"{path} needs the tables and checkpoints of its store, and {folder.store.path!r} has "
            "none: give store=PATH, or move the store's folder `store` beside the run's folder"
        )
    return (
        folder
        if os.path.realpath(folder.path) == os.path.realpath(here)
        else RunFolder(folder.store, folder.name, moved_to=here)
    )


def _say_differences(
    path: Path, overrides: list[str], trained: Curriculum, folder: RunFolder
) -> None:
    """Print in which keys a run was trained otherwise than its curriculum says now."""
    from ppt.config.reference import keys_of

    try:
        asked = load_curriculum(path, overrides)
    except ConfigError:  # it lacks keys, such as `root`, that were given when the run was trained
        told = "its keys"
    else:
        before = {key.place: key.value for key in keys_of(asked)}
        changed = {
            ".".join(key.place): key.value
            for key in keys_of(trained)
            if key.place not in before or before[key.place] != key.value
        }
        if not changed:
            return
        told = ", ".join(f"{place}={value}" for place, value in [*changed.items()][:5])
        told += ", ..." if len(changed) > 5 else ""
    say(f"as the run was trained ({folder.path}/{RUN_CURRICULUM}): {escape(told)}")


def _checked(curriculum: Curriculum) -> Curriculum:
    """Return a curriculum whose data sets can be opened. Raises ConfigError if they cannot."""
    from ppt.data.source import check_data_sets

    check_data_sets(curriculum.data)
    return curriculum


@contextmanager
def open_runner(
    curriculum: Curriculum, *, local: bool = False, trains: bool = True
) -> Iterator[Runner]:
    """Open the runner of a curriculum: on Ray, or with `local` in this process.

    Raises ConfigError, before hours are spent, if it `trains` and there is no room for a training.
    """
    if local:
        from ppt.steps.local_runner import LocalRunner, check_training
        from ppt.store.nodes import Store

        if trains and curriculum.stages:
            check_training(curriculum.resources)
        yield LocalRunner(Store(curriculum.store), curriculum.resources)
        return
    from ppt.distributed.ray_runner import ray_runner

    with ray_runner(curriculum, trains=trains) as runner:
        yield runner


def run_until(
    step: Literal["prepare", "encode", "label"],
    path: Path,
    overrides: list[str] | None,
    *,
    local: bool = False,
) -> RunRecord:
    """Load a curriculum and run it up to a step, so that nothing is trained."""
    curriculum = load(path, overrides)
    from ppt.curriculum.run import run_curriculum

    with open_runner(curriculum, local=local, trains=False) as runner:
        return run_curriculum(curriculum, runner, until=step)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Raise ConfigError, which names the extra, if an import in the block lacks a package."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("ppt"):
            raise
        raise ConfigError(
            f"{error.name} is not installed: pip install 'ppt-ris[{extra}]'"
        ) from None


def check_free(host: str, port: int) -> None:
    """Raise ConfigError if this machine cannot listen on an address and a port."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


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
    say_mlflow(tracking_uri(record.folder))


def say_mlflow(uri: str) -> None:
    """Print the address of MLflow's page with the runs; for a database, how to serve it as well."""
    from ppt.tracking.mlflow_runs import runs_page

    server = uri
    if not uri.startswith(("http://", "https://")):
        server = "http://127.0.0.1:5000"  # where `mlflow ui` serves by default
        found = shutil.which("mlflow")
        program = "mlflow" if found else os.path.relpath(Path(sys.executable).parent / "mlflow")
        say(f"MLflow:  {program} ui --backend-store-uri {shlex.quote(uri)}")
    say(f"MLflow:  {server.rstrip('/')}{runs_page(uri)}")


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

"""Run any other command on a Ray cluster as if it ran here, with its log and its exit code.

ppt submit --address http://HEAD:8265 train quickstart store=/shared/runs
ppt submit --address http://HEAD:8265 --no-wait train quickstart store=/shared/runs
ppt submit --address http://HEAD:8265 --stop ID
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ppt.config import ConfigError, find_curriculum, load_curriculum
from ppt.config.load import RUN_CURRICULUM, load_run, place_of_run
from ppt.config.messages import near

from .commands import COMMANDS, add_commands
from .common import command, interrupted, run_alone, say

SETTINGS = {"allow_interspersed_args": False}  # options after COMMAND belong to the command


@command
def main(
    job: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND [ARGUMENTS]...", help="The command, as after `ppt`."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster's dashboard, e.g. http://HEAD:8265; by default RAY_ADDRESS, else "
            "http://127.0.0.1:8265."
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and end.")] = False,
    follow: Annotated[
        str | None, typer.Option(metavar="ID", help="Follow a job that was submitted before.")
    ] = None,
    stop: Annotated[str | None, typer.Option(metavar="ID", help="Stop a job.")] = None,
) -> None:
    """Run a command on a Ray cluster as if it ran here, with its log and its exit code.

    The working directory is sent to the cluster, but not data, runs and caches: name these by a
    path or URL that every machine can open.
    """
    if sum((bool(job), follow is not None, stop is not None)) != 1:
        raise ConfigError("give a command (e.g. train CURRICULUM), --follow ID or --stop ID")
    words = _checked(job, Path.cwd()) if job else []
    from ppt.distributed import submission

    client = submission.connect(address)
    if stop is not None:
        say(f"{stop} {'is stopped' if submission.stop(client, stop) else 'had ended before'}")
        return
    if follow is None:
        say("sending the working directory")
    name = follow or submission.submit(client, words, Path.cwd())
    again = f"ppt submit {f'--address {address} ' if address else ''}"
    if follow is None:
        say(f"job:    {name}")
        say(f"follow: {again}--follow {name}")
        say(f"stop:   {again}--stop {name}")
    if no_wait:
        typer.echo(name)
        return
    try:
        code = submission.follow(client, name, _write)
    except KeyboardInterrupt as error:
        say(f"\n{name} goes on: {again}--follow {name}, or {again}--stop {name}")
        raise interrupted(error) from None
    raise typer.Exit(code)


def _checked(job: Sequence[str], folder: Path) -> list[str]:
    """Return the words of a command as they are for the cluster.

    Raises ConfigError for mistakes, before anything is sent.
    """
    group: Any = typer.main.get_command(add_commands(typer.Typer()))
    name, *arguments = job
    if name not in COMMANDS:
        hint = near(name, COMMANDS)
        raise ConfigError(f"unknown command {name!r}: give one of {', '.join(COMMANDS)}{hint}")
    with group.commands[name].make_context(f"ppt {name}", list(arguments)) as context:
        asked = context.params
    if (path := asked.get("curriculum") or asked.get("run")) is None:
        return list(job)
    overrides = asked["overrides"] or []
    if (Path(path) / RUN_CURRICULUM).is_file():  # a run's folder, in a store that all machines see
        _check_store(load_run(Path(path).resolve(), overrides).store, folder)
        return [name, *(str(path.resolve()) if word == str(path) else word for word in arguments)]
    place = place_of_run(path, overrides) if "run" in asked else None
    _check_store(place[0] if place else load_curriculum(path, overrides).store, folder)
    if find_curriculum(path) != Path(path):
        return list(job)  # a name, which is known on the cluster too
    try:
        sent = str(Path(path).resolve().relative_to(folder.resolve()))
    except ValueError:
        raise ConfigError(
            f"{str(path)!r} lies outside of {str(folder)!r}, which is what is sent to the cluster"
        ) from None
    return [name, *(sent if word == str(path) else word for word in arguments)]


def _check_store(store: str, folder: Path) -> None:
    """Raise ConfigError if the store is a relative path, which would be lost with the job."""
    if "://" not in store and not Path(store).is_absolute():
        raise ConfigError(
            f"store: {store!r} is relative: on the cluster it would lie in the job's folder and be "
            "lost. Give a path that every machine shares or a URL, e.g. store=/shared/runs or "
            f"store=s3://bucket/runs (if this machine is the cluster: store={folder / store})"
        )


def _write(text: str) -> None:
    """Write text to the output stream at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    run_alone(main, SETTINGS)

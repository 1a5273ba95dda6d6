"""Any other command on a Ray cluster, as if it ran here: its log, its exit code.

ppt submit --address http://HEAD:8265 train curricula/quickstart.yaml store=/shared/runs
ppt submit --address http://HEAD:8265 --no-wait train curricula/quickstart.yaml store=/shared/runs
ppt submit --address http://HEAD:8265 --stop ID
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.common import command, load, run_alone, say
from ppt.config import ConfigError
from ppt.pipeline import jobs

SETTINGS = {"allow_interspersed_args": False}  # options after COMMAND are the command's own


@command
def main(
    job: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND [ARGUMENTS]...", help="As after `ppt`, e.g. train ..."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help=f"Its dashboard, e.g. http://HEAD:8265; else RAY_ADDRESS, else {jobs.LOCAL}."
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and end.")] = False,
    follow: Annotated[
        str | None, typer.Option(metavar="ID", help="Follow a job that was submitted before.")
    ] = None,
    stop: Annotated[str | None, typer.Option(metavar="ID", help="Stop a job.")] = None,
) -> None:
    """Run a command on a Ray cluster: send the working directory, follow the log, end as it ends.

    Data, runs and caches are not sent: name them by a path or URL that every machine can open.
    """
    if sum((bool(job), follow is not None, stop is not None)) != 1:
        raise ConfigError("give a command (e.g. train CURRICULUM), --follow ID or --stop ID")
    words = _checked(job, Path.cwd()) if job else []
    client = jobs.connect(address)
    if stop is not None:
        say(f"{stop} {'is stopped' if jobs.stop(client, stop) else 'had ended before'}")
        return
    if follow is None:
        say("sending the working directory")
    name = follow or jobs.submit(client, words, Path.cwd())
    again = f"ppt submit {f'--address {address} ' if address else ''}"
    if follow is None:
        say(f"job:    {name}")
        say(f"follow: {again}--follow {name}")
        say(f"stop:   {again}--stop {name}")
    if no_wait:
        typer.echo(name)
        return
    try:
        code = jobs.follow(client, name, _write)
    except KeyboardInterrupt:
        say(f"\n{name} goes on: {again}--follow {name}, or {again}--stop {name}")
        raise typer.Exit(130) from None
    raise typer.Exit(code)


def _checked(job: Sequence[str], folder: Path) -> list[str]:
    """The words of a command that can run elsewhere; mistakes are told before anything is sent."""
    from jobs.cli import app  # which imports this module

    group: Any = typer.main.get_command(app)
    name, *arguments = job
    known = [other for other in group.commands if other != "submit"]
    if name not in known:
        raise ConfigError(f"unknown command {name!r}: give one of {', '.join(known)}")
    with group.commands[name].make_context(f"ppt {name}", list(arguments)) as context:
        asked = context.params
    if (path := asked.get("curriculum")) is None:
        return list(job)
    _check_store(load(path, asked["overrides"]).store, folder)
    try:
        sent = str(Path(path).resolve().relative_to(folder.resolve()))
    except ValueError:
        raise ConfigError(
            f"{str(path)!r} lies outside of {str(folder)!r}, which is what is sent to the cluster"
        ) from None
    return [name, *(sent if word == str(path) else word for word in arguments)]


def _check_store(store: str, folder: Path) -> None:
    if "://" not in store and not Path(store).is_absolute():
        raise ConfigError(
            f"store: {store!r} is relative: on the cluster it would lie in the job's folder and be "
            "lost. Give a path that every machine shares or a URL, e.g. store=/shared/runs or "
            f"store=s3://bucket/runs (if this machine is the cluster: store={folder / store})"
        )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    run_alone(main, SETTINGS)

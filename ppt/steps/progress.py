"""Messages of a runner: a progress bar on a terminal or a line for each step, and warnings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:  # commands that print no progress import neither
    from ppt.store.checksums import DamagedFile
    from ppt.store.nodes import Node, Store

console = Console(stderr=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_per_second(speed) if speed else "", style="progress.data.speed")


class Advance(Protocol):
    """A function that moves a progress bar, and may set where it ends."""

    def __call__(self, amount: int, total: int | None = None, *, is_new: bool = True) -> None: ...


@contextmanager
def progress_bar(title: str, total: int | None, unit: str = "") -> Iterator[Advance]:
    """Show a progress bar, and yield the function `advance(n)` that moves it by n.

    A total that is not known at first is given as `advance(n, total)`. What was done before an
    interruption is given with `is_new=False`.

    At the end a line remains, which says what was done now, how much of it and how long it took.
    """
    started, done = time.monotonic(), 0
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(title, total=total)

        def advance(amount: int, total: int | None = None, *, is_new: bool = True) -> None:
            nonlocal done
            done += amount if is_new else 0
            progress.update(task, advance=amount, total=total)

        yield advance
    seconds = time.monotonic() - started
    rate = f", {_per_second(done / seconds)}" if seconds > 0 and done else ""
    what = f"{done:,} {unit}".rstrip()
    console.print(f"[green]✓[/] {title}: {what} in {seconds:.1f} s{rate}", highlight=False)


def print_epoch(title: str, epoch: float, loss: float) -> None:
    """Print a line for an epoch of a training if there is no terminal to show the bar."""
    if not console.is_terminal:
        console.print(f"  {title}, epoch {epoch:.0f}: loss {loss:.4g}", highlight=False)


def print_resumed(title: str, epoch: int) -> None:
    """Print a line for a training that was interrupted and goes on after an epoch."""
    console.print(f"  {title}: goes on after epoch {epoch}", highlight=False)


def prepare_folder(node: Node) -> list[int]:
    """Return the buckets of a node that are to be made, and say which of them are damaged.

    What a crash has left in the node's folder is removed.
    """
    node.clean()
    for damage in node.damage():
        print_repair(damage)
    return node.missing_buckets()


def print_repair(damage: DamagedFile) -> None:
    """Print a line for a damaged bucket that is made anew."""
    told = str(damage).rpartition(": ")[0]
    text = f"[yellow]damaged:[/] {escape(told)}: bucket {damage.bucket} is made anew"
    console.print(text, highlight=False, soft_wrap=True)


def print_waiting(title: str, why: str = "another run is making this") -> None:
    """Print a line for something that another run is making."""
    console.print(f"{escape(title)}: {why}, waiting", highlight=False, soft_wrap=True)


def print_in_use(store: Store) -> None:
    """Print a line for a store that cannot be had alone, or that another command has alone."""
    print_waiting(store.root, "another command is at work in this store")


def print_warning(text: str) -> None:
    """Print a line of warning."""
    console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)


def _per_second(speed: float) -> str:
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"

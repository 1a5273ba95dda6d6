"""Find what no run of a store needs, and remove it if asked.

ppt gc runs
ppt gc runs --delete
ppt gc runs --forget old --delete
ppt gc s3://bucket/runs --delete --alone
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .common import command, out, run_alone, say
from .show import size

if TYPE_CHECKING:
    from ppt.store.nodes import Node, Store


@command
def main(
    store: Annotated[
        str, typer.Argument(metavar="[STORE]", help="A folder or a URL, as in a curriculum.")
    ] = "runs",
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove what is not needed; else it is only listed.")
    ] = False,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone", help="No other command is at work there: for a store behind a URL."
        ),
    ] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A run without a folder, which needs nothing any more."),
    ] = None,
) -> None:
    """List what no run of a store needs; with --delete, remove it."""
    from ppt.config import ConfigError
    from ppt.steps.progress import print_in_use
    from ppt.store.locks import in_use
    from ppt.store.nodes import Store

    place, forgotten = Store(store), forget or []
    if delete and not place.is_local and not alone:
        raise ConfigError(
            f"--delete: {store!r} is behind a URL, where it cannot be seen whether another command "
            "is at work, and what that has found would be gone: see that none is on any machine, "
            "and add --alone"
        )
    locked = in_use(place, partial(print_in_use, place), alone=True)
    with locked if delete and place.check() else nullcontext():
        _collect(place, forgotten, delete=delete)


def _collect(store: Store, forgotten: list[str], *, delete: bool) -> None:
    """List what no run of a store needs, and remove it if asked."""
    from ppt.doctor.unneeded import find_unneeded
    from ppt.steps.uses import forget

    found = find_unneeded(store, forgotten)
    groups = {
        "needed": found.needed,
        "unfinished": found.unfinished,
        "not needed": found.unneeded,
    }
    table = Table("kind")
    for name in groups:
        table.add_column(name, justify="right")
        table.add_column("size", justify="right")
    kinds = sorted({node.kind for some in groups.values() for node, _ in some})
    for kind in kinds:
        table.add_row(kind, *_cells(groups, kind), end_section=kind == kinds[-1])
    table.add_row("all", *_cells(groups, None))
    out().print(table)
    say(f"runs: {', '.join(found.runs) or 'none has its folder here'}")
    for name in found.elsewhere:
        say(
            f"[yellow]note:[/] the run {name!r} has no folder here (not trained yet, moved or "
            f"removed): what it needs is kept; --forget {name} gives it up"
        )
    for node, num_bytes in found.unneeded:
        if delete:
            node.remove()
        told = "removed" if delete else "not needed"
        say(f"{told}: {node.kind} {node.digest}, {size(num_bytes)}")
    for name in forgotten if delete else []:
        forget(store, name)
    if found.unneeded and not delete:
        say("nothing was removed: --delete removes what is not needed")


def _cells(groups: dict[str, list[tuple[Node, int]]], kind: str | None) -> list[str]:
    """Return the cells of a kind, or of all kinds: numbers of nodes and their sizes."""
    cells = []
    for some in groups.values():
        sizes = [num_bytes for node, num_bytes in some if kind in (None, node.kind)]
        cells += [f"{len(sizes):,}", size(sum(sizes))]
    return cells


if __name__ == "__main__":
    run_alone(main)

"""Find what no run of a store needs, and remove it if asked.

ppt gc runs
ppt gc runs --delete
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from jobs.common import command, out, run_alone, say
from jobs.show import size

if TYPE_CHECKING:
    from ppt.store.nodes import Node


@command
def main(
    store: Annotated[
        str, typer.Argument(metavar="[STORE]", help="A folder or a URL, as in a curriculum.")
    ] = "runs",
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove what is not needed; else it is only listed.")
    ] = False,
) -> None:
    """List what no run of a store needs; with --delete, remove it."""
    from ppt.doctor.unneeded import find_unneeded
    from ppt.store.nodes import Store

    found = find_unneeded(Store(store))
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
    say(f"runs: {', '.join(found.runs)}")
    for node, num_bytes in found.unneeded:
        if delete:
            node.remove()
        told = "removed" if delete else "not needed"
        say(f"{told}: {node.kind} {node.digest}, {size(num_bytes)}")
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

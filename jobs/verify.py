"""Compare every file of a store with the checksum with which it was written.

ppt verify runs
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from .common import command, out, run_alone, say

if TYPE_CHECKING:
    from ppt.doctor.stored import Examined

COLUMNS = ("nodes", "files", "damaged", "unfinished", "files without a checksum")


@command
def main(
    store: Annotated[
        str, typer.Argument(metavar="[STORE]", help="A folder or a URL, as in a curriculum.")
    ] = "runs",
) -> None:
    """Check every file of a store; exit code 1 means that some are damaged."""
    from ppt.doctor.stored import examine_store
    from ppt.store.nodes import Store

    by_kind: dict[str, list[Examined]] = defaultdict(list)
    for found in examine_store(Store(store)):
        by_kind[found.kind].append(found)
    everything = [found for some in by_kind.values() for found in some]
    table = Table("kind")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for kind, some in by_kind.items():
        table.add_row(kind, *_numbers(some), end_section=kind == [*by_kind][-1])
    table.add_row("all", *_numbers(everything))
    out().print(table)
    damage = [line for found in everything for line in found.damage]
    for line in damage:
        say(f"[bold red]damaged:[/] {escape(line)}")
    if leftovers := sum(found.num_leftovers for found in everything):
        say(f"{leftovers} temporary files of a crash: they go when their nodes are next written")
    if damage:
        raise typer.Exit(1)


def _numbers(some: list[Examined]) -> list[str]:
    """Return the cells of a row for some folders of the store."""
    numbers = (
        len(some),
        sum(found.num_files for found in some),
        sum(bool(found.damage) for found in some),
        sum(not found.is_finished for found in some),
        sum(found.num_unchecked for found in some),
    )
    return [f"{number:,}" for number in numbers]


if __name__ == "__main__":
    run_alone(main)

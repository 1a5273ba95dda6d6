"""The output of the steps before training: a row for each table, with its counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from .common import out

if TYPE_CHECKING:
    from ppt.tracking.record import RunRecord


def print_counts(record: RunRecord) -> None:
    """Print the run's tables and their quarantined rows.

    A row says how many units went in, came out and were quarantined, and where the table is.
    """
    from ppt.tracking.summary import print_quarantine, quarantined

    table = Table()
    table.add_column("table", overflow="fold")
    for column in ("unit", "in", "out", "quarantined", "folder"):
        table.add_column(column, overflow="fold")
    for named in record.named():
        for unit, count in named.node.counts().items():
            numbers = (f"{count[key]:,}" for key in ("in", "out", "quarantined"))
            folder = f"{named.node.kind}/{named.node.digest}"
            table.add_row(named.full_name, unit, *numbers, folder)
    console = out()
    console.print(table)
    print_quarantine(list(quarantined(record)), console)

"""What the steps before training print: a row for each table, with its counts."""

from __future__ import annotations

from rich.table import Table

from jobs.common import out
from ppt.pipeline.record import RunRecord
from ppt.pipeline.summary import print_quarantine, quarantined


def print_counts(record: RunRecord) -> None:
    """The run's tables: what went in, what came out, what was quarantined, where it stands."""
    table = Table()
    table.add_column("table", overflow="fold")
    for column in ("unit", "in", "out", "quarantined", "folder"):
        table.add_column(column, overflow="fold")
    for name, node in record.nodes.items():
        for unit, count in node.counts().items():
            numbers = (f"{count[key]:,}" for key in ("in", "out", "quarantined"))
            table.add_row(name, unit, *numbers, f"{node.kind}/{node.digest}")
    console = out()
    console.print(table)
    print_quarantine(list(quarantined(record)), console)

"""Show from what a table or a checkpoint was made, back to the raw files and the configuration.

ppt show 3f0c
ppt show 3f0c9d21ab84e657 --store s3://bucket/runs
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.tree import Tree

from .common import command, out, run_alone

if TYPE_CHECKING:
    from ppt.doctor.lineage import Ancestor

_LONG = 40
"""The number of characters up to which a key with its value is told as often as it is there."""


@command
def main(
    digest: Annotated[
        str, typer.Argument(help="The digest of a node, as summary.json has it, or its beginning.")
    ],
    store: Annotated[str, typer.Option(help="A folder or a URL, as in a curriculum.")] = "runs",
) -> None:
    """Show what a table or a checkpoint was made from, back to the raw files."""
    from ppt.doctor.lineage import lineage
    from ppt.store.nodes import Store

    found = lineage(Store(store), digest)
    tree = Tree(_title(found))
    _add(tree, found, {})
    out().print(tree, highlight=False)


def _add(tree: Tree, node: Ancestor, told: dict[str, str]) -> None:
    """Add what is known of a node, and the nodes from which it was made.

    `told` are the values that stand above, by key; a long one is not told again below.
    """
    for line in _lines(node, told):
        tree.add(f"[dim]{escape(line)}[/]")
    for role, parent in node.parents.items():
        _add(tree.add(f"{escape(role)}: {_title(parent)}"), parent, told)


def _title(node: Ancestor) -> str:
    title = f"[bold]{escape(node.kind)}[/] {escape(node.digest)}"
    if node.version is not None:
        title += f", version {node.version}"
    if node.num_bytes and not node.is_repeated:
        title += f", {size(node.num_bytes)}"
    return f"{title} (as above)" if node.is_repeated else title


def _lines(node: Ancestor, told: dict[str, str]) -> Iterator[str]:
    if node.fault:
        yield node.fault
    for unit, numbers in node.counts.items():
        yield f"{unit}: " + ", ".join(f"{number:,} {name}" for name, number in numbers.items())
    if node.num_buckets:
        yield f"buckets: {node.num_buckets}"
    if node.data:
        yield f"read from: {_as_text(node.data, told)}"
    if node.spec:
        yield f"configuration: {_as_text(node.spec, told)}"


def _as_text(values: Mapping[str, Any], told: dict[str, str]) -> str:
    """Write keys and values as an override would have them, but long ones not once more."""
    parts = []
    for key, value in values.items():
        text = f"{key}={_value(value)}"
        parts.append(f"{key} as above" if told.get(key) == text and len(text) > _LONG else text)
        told[key] = text
    return ", ".join(parts)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def size(num_bytes: int) -> str:
    """Write a number of bytes for people."""
    number, units = float(num_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number, units = number / 1024, units[1:]
    return f"{number:,.0f} bytes" if units[0] == "bytes" else f"{number:,.1f} {units[0]}"


if __name__ == "__main__":
    run_alone(main)

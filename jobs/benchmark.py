"""Measure the parts of a run on this machine, each beside what it could be at best.

ppt benchmark --short
ppt benchmark --out docs/performance
ppt benchmark --local     # without Ray, on a machine that has only torch

It measures the embedded world and, with weights and features that are random numbers, nets and
tables of the paper's size. All that it writes besides the figures is removed at the end.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Local, command, load, open_runner, out, run_alone, say

if TYPE_CHECKING:
    from ppt.batches.batch import Batch
    from ppt.batches.gather import StageReader

QUICKSTART, PAPER = Path("quickstart"), "paper/refcoco"
"""The curricula that give the embedded world, and the nets of the paper's size."""

SHORT = ["data.referring.num_pictures=64", "data.object_centric.num_pictures=32"]
LONG = ["data.referring.num_pictures=320", "data.object_centric.num_pictures=128"]
SPLITS = [f"data.{name}.num_pictures=8" for name in ("validation", "evaluation")]
"""How many pictures are drawn of the embedded world."""

ON_GPU = ["resources.gpus_per_worker=0.5", "resources.gpus_per_actor=0.25"]
"""What is asked of a Ray that has a GPU."""


@command
def main(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Overrides of quickstart, e.g. data.referring.num_pictures=1000.",
        ),
    ] = None,
    short: Annotated[
        bool, typer.Option("--short", help="Less of everything: minutes on two cores.")
    ] = False,
    local: Local = False,
    folder: Annotated[Path, typer.Option("--out", help="The folder of the figures.")] = Path(
        "runs", "benchmark"
    ),
) -> None:
    """Measure the parts of a run on this machine, each beside what it could be at best.

    The figures are printed, and written as JSON, as tables in Markdown and as a plot.
    """
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        sizes = [*(SHORT if short else LONG), *SPLITS, "synthesis.num_pictures=8"]
        fixed = ["name=benchmark", f"store={Path(scratch).absolute()}"]
        given = [*sizes, *(overrides or []), *fixed]
        load(QUICKSTART, given)
        from rich.table import Table
        from torch.cuda import is_available

        from ppt.config import load_curriculum
        from ppt.experiments.benchmark import FULL_SIZE, PARTS, make_setting, measure
        from ppt.experiments.benchmark.figures import machine, value_text, write_figures

        curriculum = load(QUICKSTART, [*sizes, *(ON_GPU if is_available() else []), *given])
        stream, connection = None, ExitStack()
        if not local:
            from ppt.distributed.cluster import connected
            from ppt.distributed.stream import stream_epochs

            def stream(reader: StageReader, epochs: range) -> Iterator[Iterator[Batch]]:
                cpus = curriculum.resources.cpus_per_reader
                return stream_epochs(
                    reader, epochs=epochs, rank=0, world_size=1, cpus_per_reader=cpus
                )

            connection.enter_context(connected(curriculum.resources))
        with connection:
            setting = make_setting(
                curriculum,
                out=folder,
                short=short,
                open_runner=partial(open_runner, local=local),
                stream=stream,
                paper=load_curriculum(PAPER, FULL_SIZE),
            )
            facts = machine()
            rows = measure(setting)
    arguments = shlex.join(["ppt", "benchmark", *sys.argv[2:]])
    facts = {"command": arguments, "seconds": f"{time.monotonic() - started:.0f}", **facts}
    titles = {part: title for part, (title, _) in PARTS.items()}
    write_figures(folder, rows, titles, facts)
    table = Table("part", "size", "what", "value")
    table.columns[-1].justify = "right"
    for before, row in zip([None, *rows], rows, strict=False):
        if before and before.part != row.part:
            table.add_section()
        table.add_row(f"({row.part})", row.size, row.name, value_text(row))
    out().print(table)
    say(f"figures: {folder}")


if __name__ == "__main__":
    run_alone(main)

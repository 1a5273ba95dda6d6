"""Measure the parts of a run on this machine, each beside what it could be at best.

ppt benchmark --short
ppt benchmark --out docs/performance
ppt benchmark --parts df  # encode and a training's iteration alone
ppt benchmark --local     # without Ray, on a machine that has only torch

It measures the embedded world and, with weights and features that are random numbers, nets and
tables of the paper's size. All that it writes besides the figures is removed at the end.
"""

from __future__ import annotations

import logging
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppt.config import ConfigError, Curriculum
from ppt.store.disk import check_writable

from .common import Local, command, load, open_runner, out, run_alone, say

if TYPE_CHECKING:
    from ppt.batches.batch import Batch
    from ppt.batches.gather import StageReader
    from ppt.experiments.benchmark.rows import Row

QUICKSTART, PAPER = Path("quickstart"), "paper/refcoco"
"""The curricula that give the embedded world, and the nets of the paper's size."""

WORLD = ["data.validation.num_pictures=8", "data.evaluation.num_pictures=8"]
SHORT = [*WORLD, "data.referring.num_pictures=64", "data.object_centric.num_pictures=32"]
LONG = [*WORLD, "data.referring.num_pictures=320", "data.object_centric.num_pictures=128"]
"""How many pictures are drawn of the embedded world."""

ON_GPU = ["resources.gpus_per_worker=0.5", "resources.gpus_per_actor=0.25"]
"""What is asked of a Ray that has a GPU; each of two actors also gets a quarter of the CPUs."""


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
    parts: Annotated[
        str, typer.Option("--parts", metavar="LETTERS", help="Only these parts, e.g. acdf.")
    ] = "abcdefgh",
    local: Local = False,
    folder: Annotated[Path, typer.Option("--out", help="The folder of the figures.")] = Path(
        "runs", "benchmark"
    ),
) -> None:
    """Measure the parts of a run on this machine, each beside what it could be at best.

    The figures are printed, and written as JSON, as tables in Markdown and as a plot.
    """
    started = time.monotonic()
    if not parts or set(parts) - set("abcdefgh"):
        raise ConfigError(f"--parts must be letters from a to h, such as acdf, got {parts!r}")
    check_writable(folder, "--out")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        fixed = ["name=benchmark", f"store={Path(scratch).absolute()}"]
        given = [*(SHORT if short else LONG), "synthesis.num_pictures=8", *(overrides or [])]
        curriculum = load(QUICKSTART, [*given, *fixed])
        _check(curriculum)
        from torch.cuda import is_available

        from ppt.config import load_curriculum
        from ppt.experiments.benchmark import FULL_SIZE, PARTS, make_setting, measure
        from ppt.experiments.benchmark.figures import machine, write_figures

        if is_available():
            decoding = f"resources.cpus_per_actor={max((os.cpu_count() or 1) // 4, 1)}"
            curriculum = load(QUICKSTART, [*ON_GPU, decoding, *given, *fixed])
        stream, connection = None, ExitStack()
        if not local:
            from ppt.distributed.cluster import connected
            from ppt.distributed.stream import stream_epochs

            logging.getLogger("ray.data").setLevel(logging.ERROR)

            def stream(reader: StageReader, epochs: range) -> Iterator[Iterator[Batch]]:
                resources = curriculum.resources
                return stream_epochs(
                    reader, epochs=epochs, rank=0, world_size=1, resources=resources
                )

            connection.enter_context(connected(curriculum.resources))
        chosen = ["--parts", parts] if len(parts) < len(PARTS) else []
        options = [*["--short"] * short, *chosen, *["--local"] * local, *(overrides or [])]
        facts = {"command": shlex.join(["ppt", "benchmark", *options]), **machine()}
        with connection:
            setting = make_setting(
                curriculum,
                out=folder,
                short=short,
                open_runner=partial(open_runner, local=local),
                stream=stream,
                paper=load_curriculum(PAPER, FULL_SIZE),
            )
            rows = measure(setting, parts)
    facts["time"] = f"{time.monotonic() - started:.0f} s"
    write_figures(folder, rows, {part: title for part, (title, _) in PARTS.items()}, facts)
    _print(rows, facts)
    say(f"figures: {folder}")


def _check(curriculum: Curriculum) -> None:
    """Raise ConfigError if the pictures of a data set cannot be multiplied, or nothing trains."""
    for name, data in curriculum.data:
        if not hasattr(data, "num_pictures"):
            raise ConfigError(
                f"data.{name}.format must be one of the embedded world, which can draw any number "
                f"of pictures, got {data.format!r}: other data sets cannot be measured"
            )
    if not curriculum.stages:
        raise ConfigError("stages must have a stage to measure, got none")


def _print(rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """Print the rows as one table, below it the facts."""
    from rich.table import Table

    from ppt.experiments.benchmark.figures import value_text

    table = Table("part", "size", "what", "value")
    table.columns[-1].justify = "right"
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        ends = following is None or following.part != row.part
        table.add_row(f"({row.part})", row.size, row.name, value_text(row), end_section=ends)
    out().print(table)
    for name, value in facts.items():
        say(f"{name}: {value}")


if __name__ == "__main__":
    run_alone(main)

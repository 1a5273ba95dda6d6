"""The rows of the benchmark as files: JSON, tables in Markdown, and a plot."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ppt.experiments.benchmark.iteration_parts import WHOLE
from ppt.experiments.benchmark.rows import RATIO, Row
from ppt.tracking.summary import versions

JSON, MARKDOWN, PLOT = "benchmark.json", "benchmark.md", "benchmark.svg"
"""The names of the files."""


def machine() -> dict[str, str]:
    """Return on what the benchmark runs: its processor, its device, its load and its versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "processor": f"{_processor()}, {os.cpu_count()} CPUs",
        "GPU": device,
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }


def _processor() -> str:
    """Return the name of the processor as Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_figures(
    out: Path, rows: Sequence[Row], titles: Mapping[str, str], facts: Mapping[str, str]
) -> None:
    """Write all files.

    Args:
        out: the folder.
        rows: the rows.
        titles: the title of each part.
        facts: what else is to be known, such as the machine.
    """
    content = {"facts": dict(facts), "rows": [asdict(row) for row in rows]}
    (out / JSON).write_text(json.dumps(content, indent=1))
    (out / MARKDOWN).write_text(as_markdown(rows, titles, facts))
    plot(rows).savefig(out / PLOT)


def as_markdown(rows: Sequence[Row], titles: Mapping[str, str], facts: Mapping[str, str]) -> str:
    """Return the facts and a table for each part that has rows."""
    lines = ["# Benchmark", "", *(f"* {name}: {value}" for name, value in facts.items()), ""]
    lines += [f"![Ratios, parts of an iteration and memory]({PLOT})", ""]
    for part, title in titles.items():
        of_part = [row for row in rows if row.part == part]
        if of_part:
            lines += [f"## ({part}) {title}", "", "| size | what | value |", "|---|---|---:|"]
            lines += [f"| {row.size} | {row.name} | {value_text(row)} |" for row in of_part]
            lines.append("")
    return "\n".join(lines)


def value_text(row: Row) -> str:
    """Return the value of a row with its unit, to three digits or in whole numbers."""
    number = f"{row.value:,.0f}" if row.value >= 1_000 else f"{row.value:.3g}"
    return f"{number} {row.unit}"


def plot(rows: Sequence[Row]) -> Figure:
    """Draw all ratios, the parts of an iteration as shares of the whole, and the memory."""
    ratios = [row for row in rows if row.unit == RATIO and row.part != "c" or " / " in row.name]
    parts = [row for row in rows if row.part == "f" and row.unit == "ms" and row.name != WHOLE]
    memory = [row for row in rows if row.part == "h"]
    figure = Figure(figsize=(9, 3 + 0.3 * (len(ratios) + len(parts))), layout="constrained")
    heights = [len(ratios) + 2, len(parts) + 2, len(memory) + 2]
    above, middle, below = figure.subplots(3, height_ratios=heights)
    whole = {row.size: row.value for row in rows if row.part == "f" and row.name == WHOLE}
    for axes, shown, values, start, title in (
        (above, ratios, [row.value for row in ratios], 1, "ratios, logarithmic"),
        (middle, parts, [row.value / whole[row.size] for row in parts], 0, "share of an iteration"),
        (below, memory, [row.value for row in memory], 0, "memory in GB"),
    ):
        widths = [value - start for value in values]
        bars = axes.barh(range(len(shown)), widths, left=start)
        axes.bar_label(bars, [f" {value:.2g}" for value in values])
        labels = [f"({row.part}) {row.name}, {row.size}" for row in shown]
        axes.set_yticks(range(len(shown)), labels)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(title, loc="left")
    if ratios:
        above.set_xscale("log")
        above.axvline(1, color="black", linewidth=0.8)
    return figure

"""The results of an ablation for users: a table as text and CSV, a plot, and an HTML page."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ppt.evaluation.diagnosis import COMPARED, NegativeEffect, negative_effect
from ppt.evaluation.metrics import Overlaps, measure
from ppt.evaluation.outcomes import CANDIDATE_GROUPS, CHANGE, MEANING, OUTCOMES
from ppt.experiments.ablation import ALL, Ablation, Line
from ppt.experiments.negatives_gallery import NegativesGallery, negatives_gallery
from ppt.experiments.table3 import METRICS
from ppt.images.drawing import NEGATIVE, POSITIVE
from ppt.report.templates import template
from ppt.steps.label_quality import LabelQuality

COLOURS = {
    "found": "#2a9d63",
    "part": "#a6cf57",
    "too much": "#f2c14e",
    "wrong object": "#d1495b",
    "nothing": "#8d99ae",
}
"""The colours of the outcomes, in the order from right to wrong."""


def table_of(ablation: Ablation) -> Table:
    """Return a table of each metric's mean and spread over the seeds, beside the paper's mIoU."""
    seeds = ", ".join(map(str, ablation.seeds))
    title = f"{ablation.name}: {ablation.num_sentences:,} held-out sentences, seed {seeds}"
    table = Table(title=title, title_justify="left", caption=cost_of(ablation))
    table.add_column("row")
    table.add_column("")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    table.add_column("paper's mIoU", justify="right")
    for line in ablation.lines:
        paper = f"{line.paper.metrics['mIoU']:.1f}" if line.paper else ""
        table.add_row(line.name, line.title, *(_cell(line, m) for m in METRICS), paper)
    return table


def cost_of(ablation: Ablation) -> str:
    """Return a line with the number of trained stage-epochs, and their number without sharing."""
    shared, unshared = ablation.stage_epochs, ablation.stage_epochs_unshared
    return f"{shared} stage-epochs trained, {unshared} without sharing"


def _cell(line: Line, metric: str) -> str:
    spread = line.spread(metric)
    return f"{line.mean(metric):.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def write_ablation(ablation: Ablation, folder: Path) -> list[Path]:
    """Write table.txt, table.csv, table.png and report.html into a folder, and return their paths.

    table.csv has a line for each row and seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "table.txt": _text(ablation).encode(),
        "table.csv": _csv(ablation).encode(),
        "table.png": _plot(ablation),
    }
    files["report.html"] = _page(ablation, files["table.png"]).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def _text(ablation: Ablation) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=120).print(table_of(ablation))
    return buffer.getvalue()


def _csv(ablation: Ablation) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    papers = [f"paper {metric}" for metric in METRICS]
    writer.writerow(["row", "title", "seed", *METRICS, *papers, *OUTCOMES])
    for line in ablation.lines:
        paper = [line.paper.metrics[metric] if line.paper else "" for metric in METRICS]
        for seed, measured in line.by_seed.items():
            counts = [measured.outcomes[ALL][what] for what in OUTCOMES]
            values = [round(measured.metrics[metric], 3) for metric in METRICS]
            writer.writerow([line.name, line.title, seed, *values, *paper, *counts])
    return buffer.getvalue()


def _plot(ablation: Ablation) -> bytes:
    """Draw the mIoU of each line of the table as a PNG file.

    A bar is the mean, points are the seeds, and a vertical mark is the paper's value.
    """
    from matplotlib.figure import Figure

    lines = ablation.lines[::-1]
    figure = Figure(figsize=(8, 0.42 * len(lines) + 1.1), layout="constrained")
    axes = figure.subplots()
    places = range(len(lines))
    means = [line.mean("mIoU") for line in lines]
    axes.barh(places, means, color="#4c78a8", height=0.62, label="here")
    for place, line in zip(places, lines, strict=True):
        ious = [measured.metrics["mIoU"] for measured in line.by_seed.values()]
        if len(ious) > 1:
            axes.plot(ious, [place] * len(ious), "o", color="#1b2a41", markersize=3.5)
        axes.text(max(ious) + 0.8, place, f"{line.mean('mIoU'):.1f}", va="center", fontsize=9)
        if line.paper:
            value = line.paper.metrics["mIoU"]
            axes.plot([value, value], [place - 0.31, place + 0.31], color="#e07a1f", linewidth=2)
    axes.plot([], [], color="#e07a1f", linewidth=2, label="the paper, on RefCOCO val")
    axes.set_yticks(list(places), [_name(line) for line in lines], fontsize=9)
    axes.set_xlim(0, max(means) * 1.12)
    axes.set_xlabel("mIoU, %")
    figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _name(line: Line) -> str:
    return f"{line.name.partition(',')[0]}  {line.title}"


# ---------------------------------------------------------------- the page


def _page(ablation: Ablation, plot: bytes) -> str:
    measured = [m for line in ablation.lines for m in line.by_seed.values()]
    kinds = {kind for m in measured for kind in m.outcomes} - {ALL}
    galleries = list(_galleries(ablation))
    groups = {group for m in measured for group in m.by_candidates}
    return template("ablation_page.html.jinja").render(
        ablation=ablation,
        cost=cost_of(ablation),
        metrics=METRICS,
        cell=_cell,
        plot=base64.b64encode(plot).decode(),
        kinds=[ALL, *sorted(kinds)],
        shares=_shares,
        found=_found,
        outcomes=OUTCOMES,
        meaning=MEANING,
        colours=COLOURS,
        points={"positive": POSITIVE, "negative": NEGATIVE},
        candidate_groups=[group for group in CANDIDATE_GROUPS if group in groups],
        by_candidates=_by_candidates,
        measure=measure,
        qualities=list(_qualities(ablation)),
        effects=list(_effects(ablation)),
        change=CHANGE,
        galleries=galleries,
        best=max((line for line, _ in galleries), key=lambda line: line.mean("mIoU"), default=None),
    )


def _shares(line: Line, kind: str = ALL) -> dict[str, float]:
    """Return the share of each outcome in percent, over all seeds."""
    counts = [m.outcomes[kind] for m in line.by_seed.values() if kind in m.outcomes]
    total = sum(sum(count.values()) for count in counts)
    return {w: 100 * sum(c[w] for c in counts) / total if total else 0.0 for w in OUTCOMES}


def _found(line: Line, kind: str) -> float:
    """Return the share of the sentences of a kind whose referent is found, in percent."""
    return _shares(line, kind)["found"]


def _by_candidates(line: Line, group: str) -> Overlaps:
    """Return the pixel counts, over all seeds, of the sentences of one `candidate_group`."""
    parts = [m.by_candidates[group] for m in line.by_seed.values() if group in m.by_candidates]
    return Overlaps.of(
        pair for part in parts for pair in zip(part.intersection, part.union, strict=True)
    )


def _effects(ablation: Ablation) -> Iterator[tuple[Line, NegativeEffect]]:
    """Yield each trained line with the effect of its negative points, averaged over the seeds."""
    for line in ablation.lines:
        results = [m.trained for m in line.by_seed.values() if m.trained]
        effects = [astuple(negative_effect(r.read_all(columns=COMPARED))) for r in results]
        if effects:
            yield line, NegativeEffect(*(sum(v) / len(v) for v in zip(*effects, strict=True)))


def _galleries(ablation: Ablation) -> Iterator[tuple[Line, NegativesGallery]]:
    """Yield each trained line with the sentences whose masks negative points changed most.

    The sentences are those of the line's lowest seed.
    """
    for line in ablation.lines:
        gallery = negatives_gallery(line.by_seed[min(line.by_seed)])
        if gallery is not None:
            yield line, gallery


def _qualities(ablation: Ablation) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table of label quality, one for each round and source.

    The figures are means over the seeds. Lines of the ablation with equal figures share a row.
    """
    rows_of: dict[tuple, list[str]] = {}
    for line in ablation.lines:
        by_seed = [measured.labels for measured in line.by_seed.values()]
        rounds = list(dict.fromkeys(name for labels in by_seed for name in labels))
        for round in rounds:
            found = [labels[round] for labels in by_seed if round in labels]
            for source in dict.fromkeys(quality.source for labels in found for quality in labels):
                if source == "h_sem" and round != "h":
                    continue  # Select does not change H_sem
                same = [q for labels in found for q in labels if q.source == source]
                means = (_mean(same, key) for key in ("num", "mean_iou", "precision", "best_iou"))
                rows_of.setdefault((round, source, *means), []).append(line.name)
    everyone = {name for names in rows_of.values() for name in names}
    for (round, source, num, mean_iou, precision, best_iou), names in rows_of.items():
        yield {
            "row": "all" if everyone == set(names) else ", ".join(names),
            "round": "" if source == "d_sem" else round,
            "source": source,
            "num": num,
            "mean_iou": mean_iou,
            "precision": precision,
            "best_iou": best_iou,
        }


def _mean(qualities: list[LabelQuality], key: str) -> float:
    return sum(getattr(quality, key) for quality in qualities) / len(qualities)

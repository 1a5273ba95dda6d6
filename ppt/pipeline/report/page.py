"""The page: gathers what the other rooms draw and fills the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ppt.diagnosis import CHANGE
from ppt.drawing import PREDICTION, TRUTH
from ppt.pipeline.record import RunRecord
from ppt.pipeline.report.curriculum_picture import curriculum_picture
from ppt.pipeline.report.curves import loss_curves
from ppt.pipeline.report.gallery import change_gallery, outcome_gallery
from ppt.pipeline.report.sentences import FOUND, UNKNOWN, Comparison, changes, compare
from ppt.pipeline.report.sources import CONTEXT, REFERENT, select_rounds, training_sources
from ppt.pipeline.report.templates import template
from ppt.pipeline.summary import best_baseline, summarise


def write_report(record: RunRecord, path: str | Path) -> Path:
    """Write the run's report: one HTML file, pictures inside, nothing fetched. Returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = template("page.html.jinja").render(_context(record))
    path.write_text(page, encoding="utf-8")
    return path


def _context(record: RunRecord) -> dict[str, Any]:
    """What the template shows."""
    comparison = compare(record)
    sources = training_sources(record)
    rounds, choices = select_rounds(record)
    return {
        "summary": summarise(record),
        "stages": record.stages,
        "curriculum": record.curriculum,
        "best": best_baseline(record.baselines),
        "num_sentences": len(comparison.sentences),
        "num_pictures": len({s.picture for s in comparison.sentences}),
        "picture": curriculum_picture(record, sources),
        "methods": _methods(record, comparison),
        "kinds": [] if comparison.kinds == [UNKNOWN] else comparison.kinds,
        "kind_sizes": {kind: int(comparison.of_kind(kind).sum()) for kind in comparison.kinds},
        "changes": [
            (change, change_gallery(record, comparison, change))
            for change in changes(record, comparison)
        ],
        "change_by": CHANGE,
        "found_from": FOUND,
        "colours": {
            "prediction": PREDICTION,
            "truth": TRUTH,
            "referent": REFERENT,
            "context": CONTEXT,
        },
        "groups": outcome_gallery(record, comparison),
        "sources": sources,
        "rounds": rounds,
        "choices": choices,
        "losses": loss_curves(record),
        "config": yaml.safe_dump(record.curriculum.model_dump(mode="json"), sort_keys=False),
    }


def _methods(record: RunRecord, comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each baseline and stage: its metrics, gain over the best baseline, by kind."""
    best = best_baseline(record.baselines)
    start = record.baselines[best]["mIoU"] if best else None
    stages = {stage.name: stage for stage in record.stages}
    rows = []
    for name, metrics in {**record.baselines, **{n: s.metrics for n, s in stages.items()}}.items():
        stage = stages.get(name)
        rows.append(
            {
                "name": name,
                "metrics": dict(metrics),
                "by_kind": comparison.by_kind(name),
                "stage": stage,
                "recipe": record.recipes.get(name),
                "gain": metrics["mIoU"] - start if stage and start is not None else None,
            }
        )
    return rows

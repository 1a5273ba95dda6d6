"""Build the report page: collect what the other modules draw, and fill the template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ppt.evaluation.outcomes import CHANGE, FOUND
from ppt.images.drawing import PREDICTION, TRUTH
from ppt.report.curriculum_picture import curriculum_picture
from ppt.report.curves import training_curves
from ppt.report.gallery import change_gallery, outcome_gallery
from ppt.report.sentences import UNKNOWN, Comparison, changes, compare
from ppt.report.sources import CONTEXT, REFERENT, select_rounds, training_sources
from ppt.report.templates import template
from ppt.store.disk import replacing
from ppt.tracking.record import RunRecord
from ppt.tracking.summary import summarise


def write_report(record: RunRecord, path: str | Path) -> Path:
    """Write the run's report as one self-contained HTML file, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = template("page.html.jinja").render(_context(record))
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _context(record: RunRecord) -> dict[str, Any]:
    """Return the variables of the template."""
    comparison = compare(record)
    sources = training_sources(record)
    rounds, choices = select_rounds(record)
    return {
        "summary": summarise(record),
        "stages": record.stages,
        "curriculum": record.curriculum,
        "best": record.best_baseline,
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
        "curves": training_curves(record),
        "config": yaml.safe_dump(record.curriculum.model_dump(mode="json"), sort_keys=False),
    }


def _methods(record: RunRecord, comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each baseline and stage.

    A row holds the metrics, the mIoU by kind and, for a stage, the gain over the best baseline.
    """
    best = record.best_baseline
    start = record.baselines[best].metrics["mIoU"] if best else None
    stages = {stage.name: stage for stage in record.stages}
    rows = []
    for name, metrics in record.metrics().items():
        stage = stages.get(name)
        rows.append(
            {
                "name": name,
                "metrics": dict(metrics),
                "by_kind": comparison.by_kind(name),
                "stage": stage,
                "recipe": record.baselines[name].recipe if name in record.baselines else None,
                "gain": metrics["mIoU"] - start if stage and start is not None else None,
            }
        )
    return rows

"""The paper's Table 3 (RefCOCO val, in percent), which is printed beside an ablation's rows."""

from __future__ import annotations

from dataclasses import dataclass

METRICS = ("mIoU", "P@0.3", "P@0.5", "P@0.7")
"""The metrics of the paper's Table 3, in the order of its columns."""


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 3: its title, and its numbers by metric."""

    title: str
    metrics: dict[str, float]


def _row(title: str, *values: float) -> PaperRow:
    return PaperRow(title, dict(zip(METRICS, values, strict=True)))


TABLE3 = {
    "row1": _row("CLIP + SAM", 26.46, 28.72, 24.84, 11.67),
    "row2": _row("Pt Prompt w/o IMG", 34.19, 43.85, 25.45, 18.35),
    "row3": _row("Semantic Learning", 38.91, 51.69, 39.63, 28.44),
    "row4": _row("3 + RIS Learning", 44.14, 59.42, 48.53, 35.62),
    "row5": _row("4 + Domain Refine (Full)", 46.76, 61.16, 50.20, 36.22),
    "row6": _row("5 w/o CL", 43.28, 57.93, 44.64, 34.27),
    "row7": _row("5 w/o Augmented IMG", 42.29, 56.56, 45.19, 33.03),
    "row8": _row("5 w/o Free IMG", 39.33, 47.29, 38.51, 27.94),
    "row9": _row("5 w/o IMG", 34.47, 43.78, 27.11, 18.77),
}
"""The rows of Table 3, by the names of the curricula that reproduce them."""

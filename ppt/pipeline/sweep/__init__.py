"""sweep: Ray Tune over the keys of a curriculum. A trial is a run like any other.

Trials meet in the store: what their curricula share has one digest, one of them makes it, the
others wait for it (`claims`). So a sweep trains every stage of the tree of its trials once.
"""

from ppt.pipeline.sweep.config import load_sweep
from ppt.pipeline.sweep.results import PICTURE, SUMMARY, TABLE, SweepRecord, print_sweep
from ppt.pipeline.sweep.run import run_sweep

__all__ = [
    "PICTURE",
    "SUMMARY",
    "TABLE",
    "SweepRecord",
    "load_sweep",
    "print_sweep",
    "run_sweep",
]

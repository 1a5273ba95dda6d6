"""The choice of the stage whose checkpoint is the model of a run.

By default it is the last stage. `pseudo_iou` chooses the stage whose masks agree best
with the pseudo labels of the validation split, without any ground truth. `truth` chooses by the
ground truth of the validation split, and the summary of the run says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ppt.config import ConfigError, ModelSelection
from ppt.tracking.record import Chosen


def choose_stage(
    by: ModelSelection, stages: Sequence[str], scores: Mapping[str, float] | None = None
) -> Chosen:
    """Return the stage with the highest score, or the last stage without scores.

    Args:
        by: the criterion that the scores belong to.
        stages: the names of the stages, in their order. Of equal ones the later is chosen.
        scores: the mIoU of each stage on the validation split, in percent.

    Raises:
        ConfigError: if a score is NaN, because the validation split has nothing to score.
    """
    if not scores:
        return Chosen(stages[-1], by)
    if any(math.isnan(score) for score in scores.values()):
        raise ConfigError(
            f"model_selection: by {by!r} nothing of the validation split could be scored: give "
            "data.validation sentences to choose by, or model_selection=last"
        )
    best = max(range(len(stages)), key=lambda i: (scores[stages[i]], i))
    return Chosen(stages[best], by, dict(scores))

"""The kinds of stages, which determine how the workers of a stage train.

The configuration selects a kind as `stages.NAME.kind`. A new kind is a subclass of
`ppt.training.loop.StageWorker` in a file of its own, and a line here, written as "module:class".
The module is imported when a stage of the kind is trained or looked for in the store.
"""

from __future__ import annotations

STAGE_KINDS = {
    "standard": "ppt.training.loop:StageWorker",
}

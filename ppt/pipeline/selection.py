"""Select (Eq. 6 and 7): an actor pool chooses the referent among each sample's candidates."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ppt.config import Model, Select
from ppt.labels.select import choose_referent
from ppt.pipeline.inference import batches, query_masks, trained
from ppt.pipeline.mixture import LabelTable
from ppt.pipeline.models import pass_device
from ppt.pipeline.passes import Pool
from ppt.pipeline.rows import PictureRow
from ppt.schema import LABELS, QUARANTINE
from ppt.store import DATA, BucketOutput, Count, Node, Store
from ppt.store import QUARANTINE as REJECTED


@dataclass(frozen=True)
class _SelectBucket:
    before: LabelTable
    checkpoint: Node
    model: Model
    select: Select

    def __call__(self, bucket: int) -> BucketOutput:
        labels = self.before.labels.read(bucket).to_pylist()
        by_picture: dict[str, list[dict]] = {}
        for row in labels:
            if row["source"] in ("h_ref", "undecided"):
                by_picture.setdefault(row["picture"], []).append(row)
        rows = [
            PictureRow(self.before.features, self.before.words, bucket, picture, expressions)
            for picture, expressions in by_picture.items()
        ]
        prompting = trained(self.checkpoint, self.model)
        eligible = {row["expression_id"]: self._eligible(row) for row in labels}
        chosen: dict[str, int | None] = {}
        for batch in batches(rows, prompting, with_targets=True):
            batch = batch.to(pass_device())
            masks, logits = query_masks(prompting, batch)
            assert batch.targets is not None
            for i, expression_id in enumerate(batch.expression_ids):
                which = eligible[expression_id]
                candidates = batch.targets[i].masks[which].bool()
                index, _ = choose_referent(
                    candidates, masks[i], logits[i], self.select.min_confidence
                )
                chosen[expression_id] = None if index is None else which[index]
        for row in labels:
            if row["expression_id"] in chosen:
                referent = chosen[row["expression_id"]]
                # No stage trains on what nobody is sure of; the next round asks again.
                row["source"] = "undecided" if referent is None else "h_ref"
                for i, candidate in enumerate(row["candidates"]):
                    candidate["is_referent"] = float(i == referent)
        sure = sum(index is not None for index in chosen.values())
        return BucketOutput(
            {DATA: pa.Table.from_pylist(labels, LABELS), REJECTED: QUARANTINE.empty_table()},
            {"expressions": Count(len(labels), len(labels), 0)},
            {"selected": sure, "undecided": len(chosen) - sure},
        )

    def _eligible(self, row: dict) -> list[int]:
        """The candidates that may be the referent, by number."""
        phrases = [candidate["phrase"] for candidate in row["candidates"]]
        if not self.select.head_phrase:
            return list(range(len(phrases)))
        return [i for i, phrase in enumerate(phrases) if phrase == phrases[0]]


def select_referents(
    store: Store,
    pool: Pool,
    before: LabelTable,
    checkpoint: Node,
    *,
    model: Model,
    select: Select,
    round: int,
) -> Node:
    """The labels of round `round`: H_ref with new referents, H_sem as it was.

    An expression whose best candidate is below `select.min_confidence` becomes "undecided".
    """
    spec = {"select": select.model_dump()}
    parents = {"labels": before.labels, "checkpoint": checkpoint}
    node = store.node("labels", spec, parents, buckets=before.labels.num_buckets)
    process = _SelectBucket(before, checkpoint, model, select)
    total = before.labels.counts()["expressions"]["out"]
    return pool.run(node, process, title=f"select, round {round}", total=total)

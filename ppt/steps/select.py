"""Select (Eq. 6 and 7): choose the referent among the candidates of each expression of H_ref."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import torch

from ppt.batches.gather import PictureRow
from ppt.batches.sampler import LabelTable
from ppt.batches.targets import unpack
from ppt.config import Model, Select
from ppt.labels.referent import choose_referent
from ppt.models.loaded import current_device
from ppt.steps.inference import batches, query_masks, trained
from ppt.steps.step import Step
from ppt.store.arrays import from_tensors
from ppt.store.lookup import text_encoding
from ppt.store.nodes import DATA, TARGETS, BucketOutput, Count, Node
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import LABELS, QUARANTINE


@dataclass(frozen=True)
class SelectReferents(Step):
    """The labels of one round: H_ref with new referents, and H_sem unchanged.

    An expression keeps its scores if no query's mask overlaps any of its candidates.
    """

    kind = "labels"
    command = "select"
    version = 2

    before: LabelTable
    checkpoint: Node
    model: Model
    select: Select
    round: int  # for display; the digest of the former labels covers it

    @property
    def title(self) -> str:
        return f"select, round {self.round}"

    @property
    def buckets(self) -> int:
        return self.before.labels.num_buckets

    def spec(self) -> dict[str, Any]:
        return {"select": self.select.model_dump(), "words": text_encoding(self.before.words)}

    def parents(self) -> dict[str, Node]:
        return {
            "labels": self.before.labels,
            "features": self.before.features,
            "checkpoint": self.checkpoint,
        }

    def total(self) -> int:
        return self.before.labels.counts()["expressions"]["out"]

    def __call__(self, bucket: int) -> BucketOutput:
        labels = self.before.labels.read(bucket).to_pylist()
        by_picture: dict[str, list[dict]] = {}
        for row in labels:
            if row["source"] == "h_ref":
                by_picture.setdefault(row["picture"], []).append(row)
        rows = [
            PictureRow(
                self.before.features,
                self.before.words,
                bucket,
                picture,
                [row["expression_id"] for row in expressions],
                [row["text"] for row in expressions],
            )
            for picture, expressions in by_picture.items()
        ]
        targets = self.before.labels.read(bucket, TARGETS)
        masks_of_candidates = from_tensors(targets["mask"])
        before = accumulate((len(row["candidates"]) for row in labels), initial=0)
        first = {row["expression_id"]: start for row, start in zip(labels, before, strict=False)}
        prompting = trained(self.checkpoint, self.model)
        eligible = {row["expression_id"]: eligible_candidates(row, self.select) for row in labels}
        chosen: dict[str, int | None] = {}
        for batch in batches(rows):
            batch = batch.to(current_device())
            masks, logits = query_masks(prompting, batch)
            for i, expression_id in enumerate(batch.expression_ids):
                which = eligible[expression_id]
                packed = masks_of_candidates[[first[expression_id] + n for n in which]]
                candidates = unpack(torch.from_numpy(packed).to(masks.device))
                index = choose_referent(candidates, masks[i], logits[i])
                chosen[expression_id] = None if index is None else which[index]
        for row in labels:
            referent = chosen.get(row["expression_id"])
            if referent is not None:
                for i, candidate in enumerate(row["candidates"]):
                    candidate["is_referent"] = float(i == referent)
        selected = sum(index is not None for index in chosen.values())
        return BucketOutput(
            {
                DATA: pa.Table.from_pylist(labels, LABELS),
                TARGETS: targets,
                REJECTED: QUARANTINE.empty_table(),
            },
            {"expressions": Count(len(labels), len(labels), 0)},
            {"selected": selected, "unselected": len(chosen) - selected},
        )


def eligible_candidates(row: dict, select: Select) -> list[int]:
    """Return the indices of the candidates that may be the referent of a row of labels.

    With `select.head_phrase` they are the candidates of the expression's first phrase.
    """
    phrases = [candidate["phrase"] for candidate in row["candidates"]]
    if not select.head_phrase:
        return list(range(len(phrases)))
    return [i for i, phrase in enumerate(phrases) if phrase == phrases[0]]

"""The effect of negative points: a checkpoint's prompts are decoded again without them.

The tables serve the diagnosis of finished runs only: nothing that trains a model or chooses one
reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ppt.batches.features import read_segmenter_features
from ppt.config import Model
from ppt.evaluation.outcomes import CHANGE
from ppt.images.masks import decode_rle, encode_rle, iou
from ppt.models.loaded import current_device, segmenter
from ppt.steps.step import Step
from ppt.store.lookup import mapped, row_of
from ppt.store.nodes import DATA, BucketOutput, Count, Node
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import QUARANTINE, WITHOUT_NEGATIVES, SentenceKey, sentence_key

PROMPTS_AT_ONCE = 32
"""The number of prompts that are decoded together."""


@dataclass(frozen=True)
class NegativeEffect:
    """The effect of the negative points of all prompts, in percent."""

    prompts: float  # share of prompts that have a negative point
    mean_iou: float  # with negative points
    mean_iou_without: float  # without negative points
    better: float  # share of sentences whose IoU is higher with them by at least `CHANGE`
    worse: float  # share of sentences whose IoU is lower with them by at least `CHANGE`

    @property
    def same(self) -> float:
        """The share of sentences whose IoU differs by less than `CHANGE`."""
        return 100 - self.better - self.worse


@dataclass(frozen=True)
class DecodeWithoutNegatives(Step):
    """The masks of a checkpoint's prompts without their negative points, and their IoU.

    `results` must come from an evaluation by our own protocol.
    """

    kind = "without_negatives"
    command = "evaluate"

    results: Node
    features: Node
    ground_truth: Node
    model: Model
    name: str  # the name of the run, for display

    @property
    def title(self) -> str:
        return f"decode {self.name} without negative points"

    @property
    def buckets(self) -> int:
        return self.results.num_buckets

    def spec(self) -> dict[str, Any]:
        return {}

    def parents(self) -> dict[str, Node]:
        return {
            "results": self.results,
            "features": self.features,
            "ground_truth": self.ground_truth,
        }

    def total(self) -> int:
        return self.results.counts()["expressions"]["out"]

    def __call__(self, bucket: int) -> BucketOutput:
        results = self.results.read(bucket).to_pylist()
        truths = {sentence_key(row): row for row in self.ground_truth.read(bucket).to_pylist()}
        prompts = [row for row in results if 0 in row["point_labels"]]
        masks: dict[SentenceKey, np.ndarray] = {}
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            part = prompts[start : start + PROMPTS_AT_ONCE]
            masks |= zip(map(sentence_key, part), self._decode(part, bucket), strict=True)
        rows = []
        for row in results:
            truth, mask = truths[sentence_key(row)], masks.get(sentence_key(row))
            without = row["iou"]
            if mask is not None:
                target = decode_rle(truth["mask"], truth["height"], truth["width"])
                without = iou(mask, target)
            rows.append(
                {
                    **{key: row[key] for key in ("picture", "expression_id", "text", "kind")},
                    "num_negatives": row["point_labels"].count(0),
                    "iou": row["iou"],
                    "iou_without": without,
                    "mask_without": None if mask is None else encode_rle(mask),
                }
            )
        return BucketOutput(
            {
                DATA: pa.Table.from_pylist(rows, WITHOUT_NEGATIVES),
                REJECTED: QUARANTINE.empty_table(),
            },
            {"expressions": Count(len(rows), len(rows), 0)},
        )

    @torch.inference_mode()
    def _decode(self, prompts: list[dict[str, Any]], bucket: int) -> list[np.ndarray]:
        """Decode the mask, bool [height, width], of each prompt without its negative points."""
        device = current_device()
        sam = segmenter(self.model.sam, device)
        table, at = mapped(self.features, bucket), row_of(self.features, bucket, "picture")
        pictures = {name: i for i, name in enumerate(dict.fromkeys(p["picture"] for p in prompts))}
        rows = [at[name] for name in pictures]
        sizes = torch.tensor([[table[c][i].as_py() for c in ("height", "width")] for i in rows])
        index = torch.tensor([pictures[p["picture"]] for p in prompts])
        points = torch.tensor([p["points"] for p in prompts]).unflatten(1, (-1, 2))
        labels = torch.tensor([p["point_labels"] for p in prompts])
        logits, _ = sam.decode(
            read_segmenter_features(table, rows, device),
            index.to(device),
            points.to(device),
            torch.where(labels == 0, -1, labels).to(device),
            sizes.to(device),
            multimask_output=False,
        )
        return [mask.cpu().numpy() for mask in sam.finish_batch(logits[:, 0], sizes[index])]


def effect_of(without: Node) -> NegativeEffect:
    """Return the shares and means of a table that `DecodeWithoutNegatives` made.

    All of them are NaN if there is no sentence.
    """
    table = without.read_all(columns=["num_negatives", "iou", "iou_without"])
    num, before, after = (column.to_numpy() for column in table.columns)
    if not len(num):
        return NegativeEffect(*[float("nan")] * 5)
    gain = before - after
    shares = (num > 0, before, after, gain >= CHANGE, -gain >= CHANGE)
    return NegativeEffect(*(100 * float(np.mean(share)) for share in shares))

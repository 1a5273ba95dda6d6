"""What negative points do to masks: a checkpoint's prompts decoded again without them.

For the diagnosis of a finished run only: nothing that trains or chooses reads these tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ppt.config import Model
from ppt.diagnosis import CHANGE
from ppt.masks import decode_rle, encode_rle, iou
from ppt.pipeline.models import pass_device, sam_decoder
from ppt.pipeline.passes import Pool
from ppt.pipeline.tables import mapped, row_of
from ppt.schema import QUARANTINE, WITHOUT_NEGATIVES, SentenceKey, from_fixed_binary, sentence_key
from ppt.store import DATA, BucketOutput, Count, Node, Store
from ppt.store import QUARANTINE as REJECTED

PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class NegativeEffect:
    """What the negative points of all prompts do, in percent of the sentences."""

    prompts: float  # that have a negative point
    mean_iou: float
    mean_iou_without: float
    better: float  # with them, by an IoU of at least `CHANGE`
    worse: float

    @property
    def same(self) -> float:
        return 100 - self.better - self.worse


@dataclass(frozen=True)
class _DecodeWithout:
    results: Node
    features: Node
    ground_truth: Node
    model: Model

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
        """bool [height, width] of each prompt, its negative points padding: no points for SAM."""
        device = pass_device()
        decoder = sam_decoder(self.model.sam, device)
        table, at = mapped(self.features, bucket), row_of(self.features, bucket, "picture")
        pictures = {name: i for i, name in enumerate(dict.fromkeys(p["picture"] for p in prompts))}
        rows = [at[name] for name in pictures]
        field = table.schema.field("image_embeddings")
        embeddings = from_fixed_binary(table[field.name], field)[rows].astype(np.float32)
        sizes = torch.tensor([[table[c][i].as_py() for c in ("height", "width")] for i in rows])
        index = torch.tensor([pictures[p["picture"]] for p in prompts])
        points = torch.tensor([p["points"] for p in prompts]).unflatten(1, (-1, 2))
        labels = torch.tensor([p["point_labels"] for p in prompts])
        logits, _ = decoder.decode(
            torch.from_numpy(embeddings).to(device),
            index.to(device),
            points.to(device),
            torch.where(labels == 0, -1, labels).to(device),
            sizes.to(device),
            multimask_output=False,
        )
        return [mask.cpu().numpy() for mask in decoder.finish_batch(logits[:, 0], sizes[index])]


def decode_without_negatives(
    store: Store,
    pool: Pool,
    results: Node,
    features: Node,
    ground_truth: Node,
    model: Model,
    *,
    name: str,
) -> Node:
    """The `WITHOUT_NEGATIVES` of a checkpoint's results (by our own protocol), bucket by bucket."""
    parents = {"results": results, "features": features, "ground_truth": ground_truth}
    node = store.node("without_negatives", {}, parents, buckets=results.num_buckets)
    process = _DecodeWithout(results, features, ground_truth, model)
    total = results.counts()["expressions"]["out"]
    return pool.run(node, process, title=f"decode {name} without negative points", total=total)


def effect_of(without: Node) -> NegativeEffect:
    """The shares and means of a table that `decode_without_negatives` made; NaN of no sentence."""
    table = without.read_all(columns=["num_negatives", "iou", "iou_without"])
    num, before, after = (column.to_numpy() for column in table.columns)
    if not len(num):
        return NegativeEffect(*[float("nan")] * 5)
    gain = before - after
    shares = (num > 0, before, after, gain >= CHANGE, -gain >= CHANGE)
    return NegativeEffect(*(100 * float(np.mean(share)) for share in shares))

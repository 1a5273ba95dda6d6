"""From stored tables to a `Batch`: features and expressions of pictures, and their targets.

Each feature is copied once, from the memory map to the tensor that the trainer gets. No Python
objects are made for pixels of masks or for features.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ppt.batches.batch import Batch, Targets
from ppt.batches.features import SEGMENTER
from ppt.batches.sampler import LabelTable, Plan
from ppt.batches.targets import draw_points
from ppt.store.arrays import is_tensor
from ppt.store.lookup import OPEN_BUCKETS, lookup_rows, mapped, row_of
from ppt.store.mapped import MappedTable
from ppt.store.nodes import TARGETS, Node


class PictureRow(NamedTuple):
    """A picture of a bucket, and those of its expressions that are wanted."""

    features: Node
    words: Node
    bucket: int
    picture: str
    expression_ids: Sequence[str]
    texts: Sequence[str]


def gather_pictures(rows: Sequence[PictureRow]) -> Batch:
    """Read the features of pictures and of their expressions into a batch without targets."""
    places = [
        (mapped(row.features, row.bucket), row_of(row.features, row.bucket, "picture")[row.picture])
        for row in rows
    ]
    features = {name: _feature(places, name) for name in features_of(places[0][0].schema)}
    sizes = [[table.column(side)[i].as_py() for side in ("height", "width")] for table, i in places]
    texts = [(row.words, text) for row in rows for text in row.texts]
    words = [lookup_rows(node, text, "word_features") for node, text in texts]
    word_features, word_mask = _padded(words)
    levels = sum(name.startswith("visual_features_") for name in features)
    return Batch(
        pictures=[row.picture for row in rows],
        sizes=torch.tensor(sizes),
        visual_features=[features[f"visual_features_{n}"] for n in range(levels)],
        segmenter_features={
            name.removeprefix(SEGMENTER): feature
            for name, feature in features.items()
            if name.startswith(SEGMENTER)
        },
        picture_index=torch.arange(len(rows)).repeat_interleave(
            torch.tensor([len(row.texts) for row in rows])
        ),
        expression_ids=[i for row in rows for i in row.expression_ids],
        texts=[text for _, text in texts],
        word_features=word_features,
        word_mask=word_mask,
        targets=None,
    )


def features_of(schema: pa.Schema) -> list[str]:
    """Return the features that the model uses: surgery tokens serve pseudo labels only."""
    return [f.name for f in schema if is_tensor(f) and f.name != "surgery_tokens"]


def _feature(places: Sequence[tuple[MappedTable, int]], name: str) -> Tensor:
    """Copy the feature of each place, float16 [I, ...].

    The memory is that of Arrow's pool, which keeps what is freed: new pages from the system would
    take several times as long as the copy.
    """
    arrays = [table.row(name, row) for table, row in places]
    shape = (len(places), *arrays[0].shape)
    buffer = pa.allocate_buffer(2 * int(np.prod(shape)))
    copied = np.frombuffer(buffer, np.float16).reshape(shape)
    for row, array in zip(copied, arrays, strict=True):
        row[...] = array
    return torch.from_numpy(copied)


def _padded(words: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Pad word features of B texts with 0 to [B, T, Dt]; and the mask [B, T] of words."""
    lengths = np.array([len(of_text) for of_text in words])
    width = words[0].shape[1] if words else 0
    padded = np.zeros((len(words), lengths.max(initial=0), width), np.float16)
    for row, of_text in zip(padded, words, strict=True):
        row[: len(of_text)] = of_text
    mask = np.arange(padded.shape[1]) < lengths[:, None]
    return torch.from_numpy(padded), torch.from_numpy(mask)


# ---------------------------------------------------------------- iterations of a plan


class LabelRows(NamedTuple):
    """The labels of a bucket, without their masks. Row r has candidates from offsets[r] on."""

    pictures: list[str]
    expression_ids: list[str]
    texts: list[str]
    offsets: np.ndarray  # [rows + 1]
    is_referent: np.ndarray  # [candidates] float32


@functools.lru_cache(maxsize=OPEN_BUCKETS)
def labels_of(node: Node, table: str, bucket: int) -> LabelRows:
    """Return a bucket of labels, which is read once in each process."""
    names = ["picture", "expression_id", "text"]
    referent = "candidates.list.element.is_referent"
    columns = node.read(bucket, table, [*names, referent]).combine_chunks()
    candidates = columns["candidates"].combine_chunks()
    counts = candidates.value_lengths().to_numpy(zero_copy_only=False)
    flat = candidates.flatten().field("is_referent").to_numpy(zero_copy_only=False)
    pictures, ids, texts = (columns[name].to_pylist() for name in names)
    return LabelRows(pictures, ids, texts, np.append(0, counts.cumsum()), flat)


@dataclass(frozen=True)
class StageReader:
    """Reads the batches of a stage in the order of its plan."""

    plan: Plan
    tables: tuple[LabelTable, ...]
    num_points: int  # M, how many point targets are drawn in the box of each candidate

    def batches(
        self, epoch: int, rank: int, world_size: int, iterations: range | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of one worker in an epoch, or in some of its iterations."""
        plan = self.plan.epoch(epoch, rank, world_size)
        numbers = plan["iteration"].to_numpy()
        chosen = range(self.plan.num_iterations) if iterations is None else iterations
        bounds = np.searchsorted(numbers, np.arange(chosen.start, chosen.stop + 1)).tolist()
        for iteration, (start, stop) in zip(chosen, pairwise(bounds), strict=True):
            rng = self.plan.rng(epoch, iteration, rank)
            yield self._gather(plan.slice(start, stop - start), rng)

    def labels(self, table: int, bucket: int) -> LabelRows:
        """Return the labels of a bucket of one of the tables."""
        of = self.tables[table]
        return labels_of(of.labels, of.table, bucket)

    def _gather(self, plan: pa.Table, rng: np.random.Generator) -> Batch:
        """Read the pictures, expressions and targets that rows of a plan (`PLAN`) name."""
        pictures: list[PictureRow] = []
        counts, masks, boxes, referents = [], [], [], []
        columns = (plan[name].to_pylist() for name in ("table", "bucket", "rows"))
        for number, bucket, rows in zip(*columns, strict=True):
            of = self.tables[number]
            labels = self.labels(number, bucket)
            ids, texts = [labels.expression_ids[r] for r in rows], [labels.texts[r] for r in rows]
            picture = labels.pictures[rows[0]]
            pictures.append(PictureRow(of.features, of.words, bucket, picture, ids, texts))
            chosen = [np.arange(labels.offsets[r], labels.offsets[r + 1]) for r in rows]
            candidates = np.concatenate(chosen)
            targets = mapped(of.labels, bucket, TARGETS)
            counts += [len(of_row) for of_row in chosen]
            masks.append(targets.rows("mask", candidates))
            boxes.append(targets.rows("box", candidates))
            referents.append(labels.is_referent[candidates])
        batch = gather_pictures(pictures)
        expression, box = np.arange(len(counts)).repeat(counts), np.concatenate(boxes)
        filled = box[:, 2] > 0  # an empty mask is no target
        expression, box, mask = expression[filled], box[filled], np.concatenate(masks)[filled]
        sizes = batch.sizes.numpy()[batch.picture_index.numpy()[expression]]
        points, labels_of_points = draw_points(mask, box, sizes, self.num_points, rng)
        referent = np.concatenate(referents)[filled]
        parts = (expression, mask, points, labels_of_points, referent)
        batch.targets = Targets(*(torch.from_numpy(part) for part in parts))
        return batch

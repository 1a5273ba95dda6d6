"""The plan of a stage: which picture and expressions at which iteration of which worker.

A pure function of (seed, stage, labels): mixture ratios are exact, a run that goes on after an
interruption sees what it would have seen, two runs are equal. Ray Data streams the plan's rows and
fetches features and labels from the buckets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ppt.config import ConfigError, SourceName
from ppt.store.nodes import DATA, Node, digest_of

PLAN = pa.schema(
    [
        pa.field("epoch", pa.int32()),
        pa.field("iteration", pa.int32()),
        pa.field("table", pa.int16()),  # which LabelTable
        pa.field("bucket", pa.int32()),
        pa.field("rows", pa.list_(pa.int32())),  # label rows, all of one picture
    ]
)


@dataclass(frozen=True)
class LabelTable:
    """The tables of a data set that a stage reads; labels and features have the same buckets."""

    labels: Node
    features: Node
    words: Node
    table: str = DATA

    def groups(self) -> dict[str, list[tuple[int, tuple[int, ...]]]]:
        """By source: the bucket and the label rows of each picture."""
        found: dict[str, dict[tuple[int, str], list[int]]] = {}
        for bucket in range(self.labels.num_buckets):
            columns = self.labels.read(bucket, self.table, ["picture", "source"])
            pairs = zip(columns["picture"].to_pylist(), columns["source"].to_pylist(), strict=True)
            for row, (picture, source) in enumerate(pairs):
                found.setdefault(source, {}).setdefault((bucket, picture), []).append(row)
        return {
            source: [(bucket, tuple(rows)) for (bucket, _), rows in pictures.items()]
            for source, pictures in found.items()
        }


@dataclass(frozen=True)
class Group:
    """Expressions of one picture that come together: its features are loaded once for them."""

    table: int
    bucket: int
    rows: tuple[int, ...]


class Plan:
    """The order of a stage's samples.

    Args:
        tables: the label tables of the run.
        sources: how often a sample of each source comes in one epoch, 1 being once.
        stage, seed: the order of the samples is a function of both.
        batch_size: the expressions of an iteration, over all workers. The last iteration of an
            epoch is filled up from the epoch's beginning.

    Raises ConfigError for a source without samples.
    """

    def __init__(
        self,
        tables: Sequence[LabelTable],
        sources: Mapping[SourceName, float],
        *,
        stage: str,
        seed: int,
        batch_size: int,
    ) -> None:
        self.sources = {name: sources[name] for name in sorted(sources)}
        self.batch_size = batch_size
        self._entropy = int(digest_of([seed, stage]), 16)
        self._groups: dict[SourceName, list[Group]] = {name: [] for name in self.sources}
        for number, table in enumerate(tables):
            for source, groups in table.groups().items():
                if source in self._groups:
                    self._groups[source] += [Group(number, *group) for group in groups]
        for source, mine in self._groups.items():
            if not mine:
                raise ConfigError(
                    f"stage {stage!r} trains on {source}, which has no samples: "
                    f"remove stages.{stage}.sources.{source} or give it data"
                )

    def num_expressions(self, source: SourceName) -> int:
        return sum(len(group.rows) for group in self._groups[source])

    @property
    def num_iterations(self) -> int:
        """The iterations of one epoch."""
        total = sum(round(w * self.num_expressions(s)) for s, w in self.sources.items())
        return max(1, -(-total // self.batch_size))

    def epoch(self, epoch: int, rank: int, world_size: int) -> pa.Table:
        """The rows (`PLAN`) of one worker in one epoch, in order of their iterations."""
        order = self._shuffled(np.random.default_rng([self._entropy, epoch]))
        rows = []
        total = self.num_iterations * self.batch_size
        for slot, group in _cut(order, total, self.batch_size, world_size):
            iteration, of_rank = divmod(slot, world_size)
            if of_rank == rank:
                rows.append((epoch, iteration, group.table, group.bucket, list(group.rows)))
        return pa.Table.from_pylist([dict(zip(PLAN.names, r, strict=True)) for r in rows], PLAN)

    def _shuffled(self, rng: np.random.Generator) -> list[Group]:
        """Return the groups of an epoch in random order.

        Each source gives exactly its weight times its number of expressions: it is repeated, or its
        last group cut, to reach that.
        """
        chosen: list[Group] = []
        for source, weight in self.sources.items():
            groups = self._groups[source]
            wanted = round(weight * self.num_expressions(source))
            while wanted > 0:
                for i in rng.permutation(len(groups)):
                    group = groups[i]
                    if wanted < len(group.rows):
                        rows = rng.choice(group.rows, wanted, replace=False)
                        group = Group(group.table, group.bucket, tuple(sorted(rows.tolist())))
                    if group.rows:
                        chosen.append(group)
                    wanted -= len(group.rows)
                    if wanted <= 0:
                        break
        return [chosen[i] for i in rng.permutation(len(chosen))]


def _cut(
    groups: Sequence[Group], total: int, batch_size: int, world_size: int
) -> Iterator[tuple[int, Group]]:
    """Deal groups into slots (iteration * world_size + rank), splitting one where a slot is full.

    An iteration's expressions are shared out over the ranks as evenly as they go.
    """
    room = [batch_size // world_size + (r < batch_size % world_size) for r in range(world_size)]
    slot, free, dealt = 0, room[0], 0
    while dealt < total:
        for group in groups:
            rows = group.rows[: total - dealt]
            while rows:
                part, rows = rows[:free], rows[free:]
                yield slot, Group(group.table, group.bucket, part)
                free -= len(part)
                dealt += len(part)
                if free == 0:
                    slot += 1
                    free = room[slot % world_size]
            if dealt == total:
                return

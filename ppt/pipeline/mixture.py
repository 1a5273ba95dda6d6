"""The plan of a stage: which picture and expressions at which step of which worker.

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
from ppt.store import DATA, Node, digest_of

PLAN = pa.schema(
    [
        pa.field("epoch", pa.int32()),
        pa.field("step", pa.int32()),
        pa.field("table", pa.int16()),  # which LabelTable
        pa.field("bucket", pa.int32()),
        pa.field("rows", pa.list_(pa.int32())),  # label rows, all of one picture
    ]
)


@dataclass(frozen=True)
class LabelTable:
    """Where labels stand, and the features that belong to the same buckets."""

    labels: Node
    features: Node
    words: Node
    table: str = DATA

    def groups(self) -> dict[str, list[tuple[int, tuple[int, ...]]]]:
        """By source, or "undecided": (bucket, label rows) of each picture."""
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

    tables: the label tables of the run; sources: weight by source name, 1 = each sample once an
    epoch. `batch_size` is a step's expressions over all workers; the last step of an epoch is
    filled up from the epoch's beginning. Raises ConfigError for a source without samples, but for
    H_ref where Select was sure of none.
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
        undecided = False
        for number, table in enumerate(tables):
            for source, groups in table.groups().items():
                undecided |= source == "undecided"
                if source in self._groups:
                    self._groups[source] += [Group(number, *group) for group in groups]
        for source, mine in self._groups.items():
            # Where Select was sure of nothing H_ref is empty, and its next round may fill it.
            if not mine and not (source == "h_ref" and undecided):
                raise ConfigError(
                    f"stage {stage!r} trains on {source}, which has no samples: "
                    f"remove stages.{stage}.sources.{source} or give it data"
                )
        if not any(self._groups.values()):
            raise ConfigError(
                f"stage {stage!r} has nothing to train on: Select was sure of no referent, lower "
                "select.min_confidence"
            )

    def num_expressions(self, source: SourceName) -> int:
        return sum(len(group.rows) for group in self._groups[source])

    @property
    def num_steps(self) -> int:
        """Steps of one epoch."""
        total = sum(round(w * self.num_expressions(s)) for s, w in self.sources.items())
        return max(1, -(-total // self.batch_size))

    def epoch(self, epoch: int, rank: int, world_size: int) -> pa.Table:
        """The rows (`PLAN`) of one worker in one epoch, in order of their steps."""
        order = self._shuffled(np.random.default_rng([self._entropy, epoch]))
        rows = []
        total = self.num_steps * self.batch_size
        for slot, group in _cut(order, total, self.batch_size, world_size):
            step, of_rank = divmod(slot, world_size)
            if of_rank == rank:
                rows.append((epoch, step, group.table, group.bucket, list(group.rows)))
        return pa.Table.from_pylist([dict(zip(PLAN.names, r, strict=True)) for r in rows], PLAN)

    def _shuffled(self, rng: np.random.Generator) -> list[Group]:
        """An epoch's groups: each source to its exact number of expressions, all mixed."""
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
    """Deal groups into slots (step * world_size + rank), splitting one where a slot is full.

    A step's expressions are shared out over the ranks as evenly as they go.
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

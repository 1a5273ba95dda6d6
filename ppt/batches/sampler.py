"""The plan of a stage: which picture and expressions at which iteration of which worker.

A pure function of (seed, stage, labels): mixture ratios are exact, a run that goes on after an
interruption sees what it would have seen, two runs are equal. The plan is kept in flat arrays, and
an epoch is planned when its turn comes. Whoever reads for a worker plans that worker's part alone.

Letters: N label rows of the stage's sources, P pictures, G groups of an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


class Plan:
    """The order of a stage's samples.

    The expressions of a picture come together, whatever their sources, so that the picture's
    features are loaded once for them. Only the end of an iteration's share separates them.

    Args:
        tables: the label tables of the run.
        sources: how often a sample of each source comes in one epoch, 1 being once.
        stage, seed: the order of the samples is a function of both.
        batch_size: the expressions of an iteration, over all workers. The last iteration of an
            epoch is filled up from the epoch's beginning.

    Raises ConfigError for a source without samples, and if no sample is left in an epoch.
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
        names = list(self.sources)
        places, rows, of_rows, sources_of = [], [], [], []
        num_pictures = 0
        for number, table in enumerate(tables):
            for bucket in range(table.labels.num_buckets):
                row, picture, source = _label_rows(table, bucket, names)
                pictures = int(picture.max(initial=-1)) + 1
                places.append(np.tile(np.array([number, bucket], np.int32), (pictures, 1)))
                rows.append(row)
                of_rows.append(picture + num_pictures)
                sources_of.append(source)
                num_pictures += pictures
        self._places = np.concatenate(places)  # [P, 2] table and bucket
        self._rows = np.concatenate(rows)  # [N] in their buckets, picture by picture
        self._pictures = np.concatenate(of_rows)  # [N] ascending
        self._sources = np.concatenate(sources_of)  # [N] index in `sources`
        counts = np.bincount(self._sources, minlength=len(names)).tolist()
        self._counts = dict(zip(names, counts, strict=True))
        check_counts(stage, self.sources, self._counts)

    def _wanted(self, source: SourceName) -> int:
        """Return how many expressions of a source an epoch has."""
        return _wanted(self.sources[source], self._counts[source])

    @property
    def num_iterations(self) -> int:
        """The iterations of one epoch."""
        return max(1, -(-sum(map(self._wanted, self.sources)) // self.batch_size))

    def epoch(self, epoch: int, rank: int, world_size: int) -> pa.Table:
        """The rows (`PLAN`) of one worker in one epoch, in order of their iterations.

        An iteration's expressions are shared out over the workers as evenly as they go. A picture
        has one row in an iteration of a worker.
        """
        drawn, starts, lengths = self._shuffled(np.random.default_rng([self._entropy, epoch]))
        total = self.num_iterations * self.batch_size
        times = -(-total // len(drawn))  # the last iteration may need some twice
        starts, lengths = np.tile(starts, times), np.tile(lengths, times)
        ends = lengths.cumsum()  # of the groups, in the expressions of all workers
        share, more = divmod(self.batch_size, world_size)
        first = np.arange(self.num_iterations) * self.batch_size + rank * share + min(rank, more)
        last = first + share + (rank < more)  # the worker's expressions of each iteration
        group_from = ends.searchsorted(first, side="right")
        parts = ends.searchsorted(last, side="left") + 1 - group_from
        iteration = np.arange(self.num_iterations).repeat(parts)
        group = _ranges(group_from, parts)
        skipped = (first[iteration] - (ends - lengths)[group]).clip(0)
        lengths = np.minimum(ends[group], last[iteration]) - (ends - lengths)[group] - skipped
        starts = starts[group] + skipped
        # Parts of one picture in one iteration become one row.
        picture = self._pictures[drawn[starts]]
        order = np.lexsort((picture, iteration))
        iteration, picture, lengths = iteration[order], picture[order], lengths[order]
        new = (np.diff(iteration, prepend=-1) != 0) | (np.diff(picture, prepend=-1) != 0)
        rows = self._rows[drawn[_ranges(starts[order], lengths)]]
        offsets = np.append((lengths.cumsum() - lengths)[new], len(rows)).astype(np.int32)
        places = self._places[picture[new]]
        columns = [
            np.full(len(places), epoch, np.int32),
            iteration[new].astype(np.int32),
            places[:, 0].astype(np.int16),
            np.ascontiguousarray(places[:, 1]),
            pa.ListArray.from_arrays(offsets, rows),
        ]
        return pa.Table.from_arrays([pa.array(column) for column in columns], schema=PLAN)

    def rng(self, epoch: int, iteration: int, rank: int) -> np.random.Generator:
        """Return what draws at random within a worker's share of an iteration."""
        return np.random.default_rng([self._entropy, epoch, iteration, rank])

    def _shuffled(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the groups of an epoch in random order.

        Each source gives exactly its weight times its number of expressions: all of them as often
        as they go, and for the rest those of random pictures, of which the last may be cut.

        Returns:
            The expressions of the epoch as indices into the N rows, group by group; and the start
            and length of each of the G groups therein, in random order.
        """
        passes: list[np.ndarray] = []
        for number, source in enumerate(self.sources):
            times, rest = divmod(self._wanted(source), self._counts[source])
            for i in range(times + (rest > 0)):
                if i == len(passes):
                    passes.append(np.zeros(len(self._rows), bool))
                mine = np.flatnonzero(self._sources == number)
                if i == times:
                    place = rng.permutation(len(self._places))[self._pictures[mine]]
                    mine = mine[np.argsort(place, kind="stable")[:rest]]
                passes[i][mine] = True
        drawn = [np.flatnonzero(chosen) for chosen in passes]
        # Each pass begins a new group, also where it begins with the picture that ended the last.
        new = [np.diff(self._pictures[some], prepend=-1) > 0 for some in drawn]
        starts = np.flatnonzero(np.concatenate(new))
        whole = np.concatenate(drawn)
        lengths = np.diff(starts, append=len(whole))
        order = rng.permutation(len(starts))
        return whole, starts[order], lengths[order]


def check_counts(
    stage: str, sources: Mapping[SourceName, float], counts: Mapping[SourceName, int]
) -> None:
    """Check that a stage has samples.

    Args:
        stage: the name of the stage.
        sources: how often a sample of each source comes in an epoch.
        counts: how many samples there are of each source.

    Raises:
        ConfigError: if there are none of a source, or if none is left in an epoch.
    """
    for source in sources:
        if not counts[source]:
            raise ConfigError(
                f"stage {stage!r} trains on {source}, which has no samples: "
                f"remove stages.{stage}.sources.{source} or give it data"
            )
    if not any(_wanted(weight, counts[source]) for source, weight in sources.items()):
        raise ConfigError(
            f"stages.{stage}.sources leaves no sample in an epoch: raise the weights of "
            + ", ".join(f"{name} ({weight:g})" for name, weight in sources.items())
        )


def _wanted(weight: float, count: int) -> int:
    """Return how many expressions of a source with so many an epoch has."""
    return round(weight * count)


def _label_rows(
    table: LabelTable, bucket: int, sources: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of some sources in a bucket of labels, picture by picture.

    Returns:
        The row numbers; the pictures, numbered from 0 in the order of their first row; and the
        indices in `sources`.
    """
    columns = table.labels.read(bucket, table.table, ["picture", "source"])
    source = pc.index_in(columns["source"], pa.array(sources, pa.string()))
    rows = np.flatnonzero(source.is_valid().to_numpy())
    picture = columns["picture"].take(pa.array(rows)).combine_chunks().dictionary_encode()
    numbers = picture.indices.to_numpy()
    order = np.argsort(numbers, kind="stable")
    rows = rows[order]
    chosen = source.take(pa.array(rows)).to_numpy()
    return rows.astype(np.int32), numbers[order].astype(np.int32), chosen.astype(np.int8)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the numbers from each start on, as many as its length says, one after another."""
    before = lengths.cumsum() - lengths
    return np.arange(lengths.sum()) + (starts - before).repeat(lengths)

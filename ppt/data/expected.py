"""How many refs the published REFER splits have, and how much of them is here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ppt.data.pictures import num_bytes

EXPECTED_REFS: Mapping[tuple[str, str], Mapping[str, int]] = {
    ("refcoco", "unc"): {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810},
    ("refcoco+", "unc"): {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798},
    ("refcocog", "umd"): {"train": 42226, "val": 2573, "test": 5023},
    ("refcocog", "google"): {"train": 44822, "val": 5000},
}
"""(dataset, split_by) -> split -> refs, as published."""


@dataclass(frozen=True)
class SplitCount:
    """One split: what its index lists, and which of its pictures are on disk."""

    refs: int
    expected_refs: int | None  # None: no number is published for this split
    pictures: int  # that the refs name
    missing_pictures: int  # of these, not on disk

    @property
    def is_whole(self) -> bool:
        """Every published ref and every picture is here."""
        return self.expected_refs in (None, self.refs) and not self.missing_pictures


def count_splits(
    refs: Iterable[tuple[str, str]], images: Path | None, dataset: str, split_by: str
) -> dict[str, SplitCount]:
    """The published splits in their order, then others that are there.

    `refs` are (split, name of the picture's file), one a ref; `images` is the folder with the
    pictures, None if there is none. Reads nothing but whether each picture exists.
    """
    expected = EXPECTED_REFS.get((dataset, split_by), {})
    pictures: dict[str, list[str]] = {split: [] for split in expected}
    for split, name in refs:
        pictures.setdefault(split, []).append(name)
    counts = {}
    for split, names in pictures.items():
        unique = set(names)
        missing = sum(images is None or num_bytes(images / name) is None for name in unique)
        counts[split] = SplitCount(len(names), expected.get(split), len(unique), missing)
    return counts


def tell_partial(counts: Mapping[str, SplitCount]) -> str | None:
    """One line on the splits that are not whole; None if all are."""
    parts = []
    for split, count in counts.items():
        told = []
        if count.expected_refs not in (None, count.refs):
            told.append(f"{count.refs} of {count.expected_refs} published refs")
        if count.missing_pictures:
            told.append(f"{count.missing_pictures} of {count.pictures} pictures are not on disk")
        if told:
            parts.append(f"{split} has {', '.join(told)}")
    return "; ".join(parts) or None

"""The published numbers of refs of the REFER splits, compared with what is on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ppt.images.pictures import num_bytes

EXPECTED_REFS: Mapping[tuple[str, str], Mapping[str, int]] = {
    ("refcoco", "unc"): {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810},
    ("refcoco+", "unc"): {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798},
    ("refcocog", "umd"): {"train": 42226, "val": 2573, "test": 5023},
    ("refcocog", "google"): {"train": 44822, "val": 5000},
}
"""(dataset, split_by) -> split -> the published number of refs."""


@dataclass(frozen=True)
class SplitCount:
    """The number of refs and pictures of a split that are on disk, and that should be."""

    refs: int  # listed in the index
    expected_refs: int | None  # None where no number is published for this split
    pictures: int  # named by the refs
    missing_pictures: int  # those of them that are not on disk

    @property
    def is_whole(self) -> bool:
        """True if every published ref and every picture is there."""
        return self.expected_refs in (None, self.refs) and not self.missing_pictures


def count_splits(
    refs: Iterable[tuple[str, str]], images: Path | None, dataset: str, split_by: str
) -> dict[str, SplitCount]:
    """Count the refs and pictures of each split, the published splits first. No picture is read.

    Args:
        refs: (split, file name of the picture) for each ref.
        images: the folder with the pictures; None if there is none.
        dataset: with `split_by`, the key of the published numbers.
        split_by: who made the splits.
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
    """Return one line about the splits that are not whole; None if all are whole."""
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

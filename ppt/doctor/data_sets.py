"""The data sets of a curriculum: what is there of each, and what is missing.

REFER data sets and tables have checks of their own, because more can be said of them; every other
format has the general one, `_check_source`.
"""

from __future__ import annotations

import functools
from pathlib import Path

from ppt.config import Data, DataFormat
from ppt.data.expected import SplitCount
from ppt.data.refer import ReferData, split_counts
from ppt.data.source import Rejected, Source, group_reasons
from ppt.data.table import TableData, TableSource
from ppt.doctor.check import Check
from ppt.doctor.published import (
    Content,
    published_content,
    where_pictures,
    where_refer,
    where_source,
)

ROLES = ("referring", "validation", "evaluation", "object_centric")
WITH_TRUTH = ("validation", "evaluation")
MOST_NAMED = 3
"""The most missing pictures, and the most reasons, that a line names."""


def check_data(role: str, data: Data) -> tuple[Check, Content | None]:
    """Check one of the four data sets.

    Returns:
        The check, and how much the data set holds. If the data set is not there, this is how much
        is published; None if that is not known.
    """
    name = f"data.{role}"
    config: DataFormat = getattr(data, role)
    try:
        if isinstance(config, ReferData):
            return _check_refer(name, config)
        source = config.open()
        if role in WITH_TRUTH:
            _ = source.ground_truth_fingerprint  # raises ValueError where there can be no masks
    except FileNotFoundError as error:
        check = Check(name, "missing", str(error), where_source(config))
        return check, published_content(config)
    except (ValueError, OSError) as error:
        return Check(name, "wrong", str(error), where_source(config)), None
    if isinstance(config, TableData):
        return _check_table(name, config, source, truth=role in WITH_TRUTH)
    return _check_source(name, config, source)


# ---------------------------------------------------------------- REFER


_counts = functools.lru_cache(maxsize=8)(split_counts)


def _check_refer(name: str, config: ReferData) -> tuple[Check, Content | None]:
    """Check a REFER data set against the published numbers of its splits."""
    splits = (config.split,) if isinstance(config.split, str) else config.split
    # The counts are those of all splits, so the value of `split` must not matter to the cache.
    counts = _counts(config.model_copy(update={"split": "train"}))
    told = "; ".join(f"{s} {_tell(counts[s])}" for s in splits if s in counts)
    label = f"{config.dataset} ({config.split_by}) in {config.root}: "
    there = [split for split, count in counts.items() if count.refs]
    if absent := [split for split in splits if split not in there]:
        found = f"{label}no ref of {', '.join(absent)} (there: {', '.join(there) or 'none'})"
        return Check(name, "missing", found, where_refer(config)), None
    chosen = [counts[split] for split in splits]
    if all(count.missing_pictures == count.pictures for count in chosen):
        check = Check(name, "missing", label + told, where_pictures(config))
        return check, published_content(config)
    source = config.open()
    content, broken = _content(source), source.broken_expressions()
    if all(count.is_whole for count in chosen) and not broken:
        return Check(name, "ok", label + told), content
    todo = []
    if broken:
        todo.append(f"{len(broken):,} expressions will be quarantined: {_tell_reasons(broken)}")
    if any(count.missing_pictures for count in chosen):
        todo.append(f"pictures that are missing are quarantined: {where_pictures(config)}")
    if any(count.expected_refs not in (None, count.refs) for count in chosen):
        todo.append("it runs on what is there; scores do not compare with published ones")
    return Check(name, "warning", label + told, "; ".join(todo)), content


def _tell(count: SplitCount) -> str:
    refs = f"{count.refs:,}"
    if count.expected_refs is not None:
        refs += f" of {count.expected_refs:,}"
    there = count.pictures - count.missing_pictures
    return f"{refs} refs, {there:,} of {count.pictures:,} pictures"


# ---------------------------------------------------------------- tables


def _check_table(
    name: str, config: TableData, source: TableSource, *, truth: bool
) -> tuple[Check, Content | None]:
    """Check a table and each of its rows. No picture and no mask is opened."""
    there = _content(source)
    rows = sum(source.num_expressions(key) for key in source.keys())
    broken = source.broken_rows(truth=truth)
    usable = rows - len(broken)
    found = (
        f"table {config.path}: {there.pictures:,} of {len(source.keys()):,} pictures, "
        f"{usable:,} of {rows:,} expressions{' with a mask' if truth else ''}"
    )
    content = Content(there.pictures, usable, there.num_bytes)
    if not broken:
        return Check(name, "ok", found), content
    told = _tell_reasons(broken)
    if len(missing := source.missing_pictures()) > 1:
        told += f"; pictures that are missing: {_name_some(missing)}"
    if not usable:
        return Check(name, "wrong", found, f"correct the table or its files: {told}"), None
    return Check(name, "warning", found, f"{len(broken):,} will be quarantined: {told}"), content


def _tell_reasons(broken: list[Rejected]) -> str:
    """Return how many expressions cannot be used for which reasons, the most frequent first."""
    reasons = group_reasons((one.reason, 1) for one in broken)
    told = ", ".join(f"{number:,} as {reason}" for number, reason in reasons[:MOST_NAMED])
    if len(reasons) > MOST_NAMED:
        told += f", and for {len(reasons) - MOST_NAMED} other reasons"
    return told


# ---------------------------------------------------------------- every other format


def _check_source(name: str, config: DataFormat, source: Source) -> tuple[Check, Content | None]:
    """Check a data set by what every `Source` tells."""
    content = _content(source)
    asked = len(source.keys())
    paths = [str(value) for _, value in config if isinstance(value, Path)]
    label = " ".join([config.format, *paths])
    found = f"{label}: {content.pictures:,} of {asked:,} pictures"
    if not content.pictures:
        return Check(name, "missing", found, where_source(config)), None
    if not content.num_bytes:
        return Check(name, "ok", f"{label}: {asked:,} pictures, drawn when needed"), content
    if content.pictures < asked:
        missing = _name_some([key for key in source.keys() if source.file_size(key) is None])
        todo = f"missing pictures are quarantined ({missing}): {where_source(config)}"
        return Check(name, "warning", found, todo.removesuffix(": ")), content
    if note := source.note:
        return Check(name, "warning", f"{found}; {note}", "it runs on what is there"), content
    return Check(name, "ok", found), content


def _name_some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _content(source: Source) -> Content:
    """Count the pictures whose files are there, their expressions and their bytes."""
    sizes = {key: source.file_size(key) for key in source.keys()}
    there = {key: size for key, size in sizes.items() if size is not None}
    expressions = sum(source.num_expressions(key) for key in there)
    return Content(len(there), expressions, sum(there.values()))

"""The data sets of a curriculum: what is there of each, and what is not."""

from __future__ import annotations

import functools

from ppt.config import (
    Data,
    ImageFolderData,
    MiniImageNetData,
    ReferData,
    TableData,
    ToyboxObjects,
    ToyboxScenes,
)
from ppt.data.expected import SplitCount
from ppt.data.refer import split_counts
from ppt.data.sources import Source, group_reasons, open_source
from ppt.data.table import TableSource
from ppt.pipeline.doctor.check import Check
from ppt.pipeline.doctor.published import (
    Content,
    published_content,
    where_pictures,
    where_refer,
    where_source,
)

ROLES = ("referring", "validation", "evaluation", "object_centric")
WITH_TRUTH = ("validation", "evaluation")
MOST_NAMED = 3
"""Missing pictures, and reasons, that a line names."""


def check_data(role: str, data: Data) -> tuple[Check, Content | None]:
    """One of the four data sets; its content, or what is published of it, None if nobody knows."""
    name, config = f"data.{role}", getattr(data, role)
    try:
        if isinstance(config, ReferData):
            return _check_refer(name, config)
        source = open_source(config)
        if role in WITH_TRUTH:
            _ = source.ground_truth_fingerprint  # says so if there can be no truth
    except FileNotFoundError as error:
        check = Check(name, "missing", str(error), where_source(config))
        return check, published_content(config)
    except (ValueError, OSError) as error:
        return Check(name, "wrong", str(error), where_source(config)), None
    if isinstance(source, TableSource):
        return _check_table(name, config, source, truth=role in WITH_TRUTH)
    return _check_source(name, config, source)


# ---------------------------------------------------------------- REFER


@functools.lru_cache(maxsize=8)
def _counts(config: ReferData) -> dict[str, SplitCount]:
    return split_counts(config)


def _check_refer(name: str, config: ReferData) -> tuple[Check, Content | None]:
    splits = (config.split,) if isinstance(config.split, str) else config.split
    counts = _counts(config.model_copy(update={"split": "train"}))  # the same for every split
    told = "; ".join(f"{s} {_tell(counts[s])}" for s in splits if s in counts)
    label = f"{config.dataset} ({config.split_by}) in {config.root}: "
    there = [split for split, count in counts.items() if count.refs]
    if absent := [split for split in splits if split not in there]:
        found = f"{label}no ref of {', '.join(absent)} (there: {', '.join(there) or 'none'})"
        return Check(name, "missing", found, where_refer(config)), None
    chosen = [counts[split] for split in splits]
    if all(count.missing_pictures == count.pictures for count in chosen):
        return Check(name, "missing", label + told, where_pictures(config)), published_content(
            config
        )
    content = _content(open_source(config))
    if all(count.is_whole for count in chosen):
        return Check(name, "ok", label + told), content
    todo = []
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
    """Its rows too, for one's own table is where mistakes are. Pictures and masks stay closed."""
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
    reasons = group_reasons((row.reason, 1) for row in broken)
    told = ", ".join(f"{number:,} as {reason}" for number, reason in reasons[:MOST_NAMED])
    if len(reasons) > MOST_NAMED:
        told += f", and for {len(reasons) - MOST_NAMED} other reasons"
    if len(missing := source.missing_pictures()) > 1:
        told += f"; pictures that are missing: {_name_some(missing)}"
    if not usable:
        return Check(name, "wrong", found, f"correct the table or its files: {told}"), None
    return Check(name, "warning", found, f"{len(broken):,} will be quarantined: {told}"), content


# ---------------------------------------------------------------- the others


def _check_source(
    name: str,
    config: ToyboxScenes | ToyboxObjects | ImageFolderData | MiniImageNetData,
    source: Source,
) -> tuple[Check, Content | None]:
    if isinstance(config, ToyboxScenes | ToyboxObjects):
        found = f"the embedded world: {config.num_pictures:,} pictures, drawn when they are needed"
        return Check(name, "ok", found), _content(source)
    content = _content(source)
    asked = len(source.keys())
    found = f"{config.format} {config.root}: {content.pictures:,} of {asked:,} pictures"
    if not content.pictures:
        return Check(name, "missing", found, where_source(config)), None
    if content.pictures < asked:
        missing = _name_some([key for key in source.keys() if source.file_size(key) is None])
        todo = f"missing pictures are quarantined ({missing}): {where_source(config)}"
        return Check(name, "warning", found, todo), content
    if note := source.note:
        return Check(name, "warning", f"{found}; {note}", "it runs on what is there"), content
    return Check(name, "ok", found), content


def _name_some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _content(source: Source) -> Content:
    sizes = {key: source.file_size(key) for key in source.keys()}
    there = {key: size for key, size in sizes.items() if size is not None}
    expressions = sum(source.num_expressions(key) for key in there)
    return Content(len(there), expressions, sum(there.values()))

"""prepare: read a source, check every picture and expression, quarantine what is broken.

Two tables come of it: `samples`, all that training may see, and `ground_truth`, which evaluation
alone reads. They have separate digests: a change in the masks changes nothing that is trained.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.markup import escape

from ppt.config import ConfigError
from ppt.data import sources
from ppt.data.pictures import check_picture, flip_picture
from ppt.data.sources import AnyData, Source, UnreadablePicture, group_reasons
from ppt.expressions import object_centric_expression
from ppt.masks import encode_rle
from ppt.pipeline.passes import Pool
from ppt.pipeline.progress import console
from ppt.schema import GROUND_TRUTH, QUARANTINE, SAMPLES
from ppt.store import DATA, BucketOutput, Count, Node, Store, bucket_of, digest_of
from ppt.store import QUARANTINE as REJECTED

open_source = functools.cache(sources.open_source)  # a process reads a source's index once


@dataclass(frozen=True)
class _PrepareSamples:
    data: AnyData
    num_buckets: int
    seed: int

    def __call__(self, bucket: int) -> BucketOutput:
        source = open_source(self.data)
        rows, rejected = [], []
        keys = _keys_of(source, bucket, self.num_buckets)
        expressions_in = 0
        for key in keys:
            num_expressions = source.num_expressions(key)
            expressions_in += num_expressions
            try:
                row, broken = self._prepare(source, key)
            except UnreadablePicture as error:
                rejected.append(_rejected(key, None, num_expressions, str(error)))
                continue
            rejected += broken
            if row["expressions"]:
                rows.append(row)
            else:
                rejected.append(_rejected(key, None, 0, "no expression is left"))
        kept = sum(len(row["expressions"]) for row in rows)
        return BucketOutput(
            {
                DATA: pa.Table.from_pylist(rows, SAMPLES),
                REJECTED: pa.Table.from_pylist(rejected, QUARANTINE),
            },
            {
                "pictures": Count(len(keys), len(rows), len(keys) - len(rows)),
                "expressions": Count(
                    expressions_in, kept, sum(row["num_expressions"] for row in rejected)
                ),
            },
        )

    def _prepare(self, source: Source, key: str) -> tuple[dict, list[dict]]:
        raw = source.read(key)
        pixels = check_picture(raw.image)
        image = raw.image
        expressions = [
            {"expression_id": e.expression_id, "text": e.text.strip()} for e in raw.expressions
        ]
        if raw.class_name is not None:
            expressions = [
                {"expression_id": key, "text": object_centric_expression(raw.class_name)}
            ]
            # Section 3.2 transforms D_sem's pictures at random; a flip chosen once for a picture
            # keeps its encoding a single one.
            if is_flipped(key, self.seed):
                image = flip_picture(pixels)
        row = {
            "picture": key,
            "image": image,
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "class_name": raw.class_name,
            "expressions": expressions,
        }
        return row, [_rejected(key, r.expression_id, 1, r.reason) for r in raw.rejected]


def is_flipped(key: str, seed: int) -> bool:
    """Whether an object-centric picture is in `samples` as in a mirror."""
    return bool(int(digest_of([seed, key]), 16) % 2)


@dataclass(frozen=True)
class _PrepareGroundTruth:
    data: AnyData
    num_buckets: int
    flip_seed: int | None

    def __call__(self, bucket: int) -> BucketOutput:
        source = open_source(self.data)
        rows, rejected = [], []
        into = 0
        for key in _keys_of(source, bucket, self.num_buckets):
            masks, broken = source.read_ground_truth(key)
            into += len(masks) + len(broken)
            rejected += [_rejected(key, r.expression_id, 1, r.reason) for r in broken]
            for truth in masks:
                mask = truth.mask
                if self.flip_seed is not None and is_flipped(key, self.flip_seed):
                    mask = mask[:, ::-1]
                height, width = mask.shape
                rows.append(
                    {
                        "picture": key,
                        "expression_id": truth.expression_id,
                        "kind": truth.kind,
                        "height": height,
                        "width": width,
                        "mask": encode_rle(mask),
                    }
                )
        return BucketOutput(
            {
                DATA: pa.Table.from_pylist(rows, GROUND_TRUTH),
                REJECTED: pa.Table.from_pylist(rejected, QUARANTINE),
            },
            {"expressions": Count(into, len(rows), len(rejected))},
        )


def _keys_of(source: Source, bucket: int, num_buckets: int) -> list[str]:
    return [key for key in source.keys() if bucket_of(key, num_buckets) == bucket]


def _rejected(
    picture: str, expression_id: str | None, num_expressions: int, reason: str
) -> dict[str, Any]:
    return {
        "picture": picture,
        "expression_id": expression_id,
        "num_expressions": num_expressions,
        "reason": reason,
    }


def prepare_samples(
    store: Store, pool: Pool, data: AnyData, *, name: str, num_buckets: int, seed: int
) -> Node:
    """The `samples` table of a source. Quarantined: unreadable pictures, empty expressions."""
    source = open_source(data)
    if note := source.note:
        console.print(f"[yellow]note:[/] {name}: {escape(note)}", highlight=False, soft_wrap=True)
    spec = {"source": source.fingerprint, "num_buckets": num_buckets, "seed": seed}
    node = store.node("samples", spec, buckets=num_buckets)
    process = _PrepareSamples(data, num_buckets, seed)
    return pool.run(node, process, title=f"prepare {name}", total=len(source.keys()))


def prepare_ground_truth(
    store: Store,
    pool: Pool,
    data: AnyData,
    *,
    name: str,
    num_buckets: int,
    flip_seed: int | None = None,
) -> Node:
    """The `ground_truth` table of a source, for evaluation only. Quarantined: broken masks.

    Of object-centric pictures `flip_seed` is the seed that `samples` were made with.
    """
    source = open_source(data)
    spec: dict[str, Any] = {"truth": source.ground_truth_fingerprint, "num_buckets": num_buckets}
    if flip_seed is not None:
        spec["flip_seed"] = flip_seed
    node = store.node("ground_truth", spec, buckets=num_buckets)
    process = _PrepareGroundTruth(data, num_buckets, flip_seed)
    return pool.run(node, process, title=f"prepare {name}'s ground truth")


def require_some(node: Node, role: str, what: str) -> None:
    """Raise ConfigError where prepare left nothing of data.`role`: all that follows would be in
    vain. `what` its expressions are, or have."""
    count = node.counts()["expressions"]
    if count["out"]:
        return
    if not count["quarantined"]:
        raise ConfigError(f"data.{role}: it holds no {what}: set data.{role} to other data")
    rows = node.quarantine().to_pylist()
    of_it, example = group_reasons((row["reason"], row["num_expressions"]) for row in rows)[0]
    raise ConfigError(
        f"data.{role}: no {what} is left, all {count['quarantined']:,} are quarantined, "
        f"{of_it:,} of them for a reason like this: {example}. Correct the data, or set "
        f"data.{role} to other data (every reason: {node.folder})"
    )

"""prepare: read a data set, check every picture and expression, and quarantine what is broken.

This makes two tables: `samples`, which is all that training may see, and `ground_truth`, which only
evaluation reads. Their digests are separate, so that a change in the masks has no effect on what is
trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ppt.config import ConfigError, DataFormat
from ppt.config.messages import one_line
from ppt.data.source import Source, group_reasons, open_source
from ppt.images.masks import encode_rle, require_pixels
from ppt.images.pictures import UnreadablePicture, check_picture, flip_picture
from ppt.labels.noun_phrases import object_centric_expression
from ppt.steps.step import Step
from ppt.store.nodes import DATA, BucketOutput, Count, Node, bucket_of, digest_of
from ppt.store.nodes import QUARANTINE as REJECTED
from ppt.store.schema import GROUND_TRUTH, QUARANTINE, SAMPLES


@dataclass(frozen=True)
class PrepareSamples(Step):
    """The `samples` of a data set; unreadable pictures and empty expressions are quarantined."""

    kind = "samples"
    command = "prepare"
    version = 2

    data: DataFormat
    num_buckets: int
    name: str  # the data set's role in the curriculum, for display

    @property
    def buckets(self) -> int:
        return self.num_buckets

    @property
    def title(self) -> str:
        return f"prepare {self.name}"

    def spec(self) -> dict[str, Any]:
        return {"source": open_source(self.data).fingerprint, "num_buckets": self.num_buckets}

    def facts(self) -> dict[str, Any]:
        """Return the configuration of the data set, which names the raw files."""
        return {"data": self.data.model_dump(mode="json")}

    def total(self) -> int:
        return len(open_source(self.data).keys())

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
            # Section 3.2 transforms the pictures of D_sem at random. Here it is decided once for
            # each picture whether to flip it, so that it is encoded only once.
            if is_flipped(key):
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


def is_flipped(key: str) -> bool:
    """Return whether `samples` holds the mirror image of an object-centric picture.

    The answer depends on the picture's key alone, so that runs with different seeds share the
    encoding of the picture.
    """
    return bool(int(digest_of([0, key]), 16) % 2)


@dataclass(frozen=True)
class PrepareGroundTruth(Step):
    """The `ground_truth` of a data set, for evaluation only.

    Masks that the source rejects, empty masks and masks of another size than their picture in
    `samples` are quarantined. If `object_centric` is set, the masks are mirrored where
    `PrepareSamples` mirrors the pictures.
    """

    kind = "ground_truth"
    command = "prepare"
    version = 3

    data: DataFormat
    samples: Node
    name: str
    object_centric: bool = False

    @property
    def buckets(self) -> int:
        return self.samples.num_buckets

    @property
    def title(self) -> str:
        return f"prepare {self.name}'s ground truth"

    def spec(self) -> dict[str, Any]:
        return {
            "truth": open_source(self.data).ground_truth_fingerprint,
            "mirrored": self.object_centric,
        }

    def facts(self) -> dict[str, Any]:
        """Return the configuration of the data set, which names the raw files."""
        return {"data": self.data.model_dump(mode="json")}

    def parents(self) -> dict[str, Node]:
        return {"samples": self.samples}

    def __call__(self, bucket: int) -> BucketOutput:
        source = open_source(self.data)
        sizes = {
            row["picture"]: (row["height"], row["width"])
            for row in self.samples.read(bucket, columns=["picture", "height", "width"]).to_pylist()
        }
        rows, rejected = [], []
        into = 0
        for key in _keys_of(source, bucket, self.buckets):
            masks, broken = source.read_ground_truth(key)
            into += len(masks) + len(broken)
            rejected += [_rejected(key, r.expression_id, 1, r.reason) for r in broken]
            for truth in masks:
                mask = truth.mask
                try:
                    _check_mask(mask, sizes.get(key))
                except ValueError as error:
                    rejected.append(_rejected(key, truth.expression_id, 1, str(error)))
                    continue
                if self.object_centric and is_flipped(key):
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


def _check_mask(mask: np.ndarray, size: tuple[int, int] | None) -> None:
    """Raise ValueError for an empty mask, or one of another size than its picture.

    `size` is the (height, width) of the picture; None if the picture is not among the samples.
    """
    require_pixels(mask, "its mask")
    if size is not None and mask.shape != size:
        raise ValueError(f"its mask is of shape {list(mask.shape)}, its picture {list(size)}")


def _keys_of(source: Source, bucket: int, num_buckets: int) -> list[str]:
    return [key for key in source.keys() if bucket_of(key, num_buckets) == bucket]


def _rejected(
    picture: str, expression_id: str | None, num_expressions: int, reason: str
) -> dict[str, Any]:
    return {
        "picture": picture,
        "expression_id": expression_id,
        "num_expressions": num_expressions,
        "reason": one_line(reason),
    }


def require_some(node: Node, role: str, what: str) -> None:
    """Raise ConfigError if nothing is left of data.`role`, which makes further steps useless.

    `what` names what is missing, such as "expression with a mask".
    """
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

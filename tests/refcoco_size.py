"""Measure the start of a stage at RefCOCO's size, on tables made up for it; not a test.

PYTHONPATH=. python tests/refcoco_size.py FOLDER [BUCKETS]

Makes tables with as many pictures, expressions and candidates as RefCOCO's training split has, and
with a tenth of them. The features of a picture are small, so that the folder takes 3 GB; the time
to the first batch does not depend on them. Prints, for each size and each in a process of its own,
the seconds until the first batch, those of the processor in it, and the memory that it takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from stored_tables import blob, label

from ppt.batches.gather import StageReader
from ppt.batches.sampler import LabelTable, Plan
from ppt.batches.targets import target_table
from ppt.store.arrays import from_tensors, ragged_field, tensor_field, to_ragged, to_tensors
from ppt.store.nodes import TARGETS, BucketOutput, Store, bucket_of
from ppt.store.schema import LABELS

PICTURES, EXPRESSIONS, CANDIDATES = 16_994, 120_624, 2
TENTH, WHOLE = 0.1, 1.0
SIZE = (480, 640)
SMALL = {"segmenter_image_embeddings": (64, 16, 16), "visual_features_0": (16, 512)}
"""The shapes of features of 49 kB a picture."""

FULL = {
    "segmenter_image_embeddings": (256, 64, 64),
    "surgery_tokens": (677, 512),
    **{f"visual_features_{n}": (676, 768) for n in range(3)},
}
"""The shapes of the paper's features, from pictures of 416 pixels: 5.9 MB a picture."""


def made(
    folder: str,
    num_pictures: int,
    num_expressions: int,
    num_buckets: int = 16,
    shapes: dict[str, tuple[int, ...]] = SMALL,
) -> LabelTable:
    """Make tables of features, words, labels and targets, or find those that were made before."""
    rng = np.random.default_rng(0)
    store = Store(folder)
    spec = {"made up": [num_pictures, num_expressions, num_buckets, shapes]}
    nodes = [store.node(k, spec, buckets=num_buckets) for k in ("labels", "features", "words")]
    if all(node.is_complete() for node in nodes):
        return LabelTable(*nodes)
    boxes = [(x, y, x + 160, y + 140) for x in range(0, 400, 80) for y in range(0, 320, 40)]
    row = label("a", SIZE, "x", [blob(SIZE, box) for box in boxes])
    one = pa.Table.from_pylist([row], LABELS)
    candidates = one["candidates"].combine_chunks().flatten()
    targets = target_table(one, 256, 1024)
    columns = [from_tensors(targets[name]) for name in ("mask", "box")]
    names = np.array([f"COCO_train2014_{n:012d}.jpg" for n in range(num_pictures)])
    bucket_of_picture = np.array([bucket_of(name, num_buckets) for name in names])
    picture = np.sort(rng.integers(0, num_pictures, num_expressions))
    picture[:num_pictures] = np.arange(num_pictures)
    ids = np.array([f"{n}" for n in range(num_expressions)])
    texts = np.array([f"the expression {n} of a picture" for n in range(num_expressions)])
    bucket_of_text = np.array([bucket_of(text, num_buckets) for text in texts])
    noise = rng.normal(size=20_000_000).astype(np.float16)

    def table(fields: list[pa.Field], arrays: list[pa.Array]) -> pa.Table:
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    for bucket in range(num_buckets):
        mine = np.flatnonzero(bucket_of_picture == bucket)
        side = [pa.array(np.full(len(mine), side, np.int32)) for side in SIZE]
        fields = [
            pa.field("picture", pa.string()),
            *(pa.field(s, pa.int32()) for s in ("height", "width")),
        ]
        fields += [tensor_field(name, shape) for name, shape in shapes.items()]
        features = [np.resize(noise, (len(mine), *shape)) for shape in shapes.values()]
        arrays = [pa.array(names[mine]), *side, *map(to_tensors, features)]
        nodes[1].write_bucket(bucket, BucketOutput({"data": table(fields, arrays)}))
        mine = np.flatnonzero(bucket_of_text == bucket)
        lengths = rng.integers(3, 14, len(mine))
        values = np.resize(noise, (int(lengths.sum()), 512))
        fields = [pa.field("text", pa.string()), ragged_field("word_features", 512)]
        arrays = [pa.array(texts[mine]), to_ragged(values, lengths.tolist())]
        nodes[2].write_bucket(bucket, BucketOutput({"data": table(fields, arrays)}))
        mine = np.flatnonzero(bucket_of_picture[picture] == bucket)
        which = rng.integers(0, len(boxes), CANDIDATES * len(mine))
        offsets = np.arange(0, len(which) + 1, CANDIDATES, dtype=np.int32)
        sides = [pa.array(np.full(len(mine), side, np.int32)) for side in SIZE]
        source = np.where(ids[mine].astype(int) % 3 > 0, "h_ref", "h_sem")
        arrays = [pa.array(of) for of in (names[picture[mine]], ids[mine], texts[mine], source)]
        arrays += [*sides, pa.ListArray.from_arrays(offsets, candidates.take(pa.array(which)))]
        tensors = pa.Table.from_arrays(
            [to_tensors(c[which]) for c in columns], schema=targets.schema
        )
        nodes[0].write_bucket(
            bucket, BucketOutput({"data": table(list(LABELS), arrays), TARGETS: tensors})
        )
    for node in nodes:
        node.write_manifest()
    return LabelTable(*nodes)


def reader_of(table: LabelTable, batch_size: int = 64) -> StageReader:
    """Make the plan of a stage and what reads it."""
    sources = {"h_sem": 1.0, "h_ref": 1.0}
    plan = Plan([table], sources, stage="s", seed=0, batch_size=batch_size)
    return StageReader(plan, (table,), 8)


def start(folder: str, share: float, num_buckets: int) -> dict[str, float]:
    """Read the first batch of a stage in this process, and return what it took."""
    numbers = (round(share * PICTURES), round(share * EXPRESSIONS), num_buckets)
    table = made(folder, *numbers)
    before, began, worked = own_memory(), time.perf_counter(), time.process_time()
    reader = reader_of(table)
    planned = time.process_time() - worked
    next(reader.batches(1, 0, 1))
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - worked, 2),
        "of_the_plan": round(planned, 2),
        "grown_mb": round(own_memory() - before, 1),
    }


def own_memory() -> float:
    """Return the memory of this process in MB, without the files that are mapped into it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1e3


def main(folder: str, num_buckets: int = 16) -> None:
    """Measure the start at a tenth of RefCOCO's size and at the whole, each in a new process."""
    for share in (TENTH, WHOLE):
        made(folder, round(share * PICTURES), round(share * EXPRESSIONS), num_buckets)
        command = [sys.executable, __file__, folder, str(num_buckets), str(share)]
        print(share, subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    folder, buckets, *share = [*sys.argv[1:], *["16"][len(sys.argv) - 2 :]]
    if share:
        print(json.dumps(start(folder, float(share[0]), int(buckets))))
    else:
        Path(folder).mkdir(parents=True, exist_ok=True)
        main(folder, int(buckets))

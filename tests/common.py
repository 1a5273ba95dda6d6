"""What tests of all kinds share: the small curriculum, its runner, and the names of its nodes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from ppt.batches.batch import Targets
from ppt.config import Curriculum, load_curriculum
from ppt.curriculum.run import run_curriculum
from ppt.models.loaded import image_text_encoder, segmenter
from ppt.steps.local_runner import LocalRunner
from ppt.store.nodes import Node, Store
from ppt.tracking.record import RunRecord

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
QUICKSTART = ROOT / "curricula" / "quickstart.yaml"

PATIENCE = 1800
"""The seconds after which a test believes that what it waits for does not come. It says nothing of
speed: on a core that other work takes nine tenths of, a process takes minutes to start."""

SMALL = [  # the quickstart with a few pictures: every step, every source, seconds each
    "name=small",
    "num_buckets=3",
    "data.referring.num_pictures=30",
    "data.object_centric.num_pictures=32",
    "data.validation.num_pictures=6",
    "data.evaluation.num_pictures=12",
    "synthesis.num_pictures=20",
    "stages.semantic_alignment.num_epochs=2",
    "stages.ris_object_centric.num_epochs=2",
    "stages.ris_joint.num_epochs=1",
    "stages.domain_refinement.num_epochs=1",
    "stages.domain_refinement.rounds=1",
    "resources.cpus_per_worker=0.5",  # one thread, since tests share the cores
]

TINY = [  # a bucket less and half the pictures, and one actor: for what runs on Ray
    "name=tiny",
    "num_buckets=2",
    "data.referring.num_pictures=16",
    "data.object_centric.num_pictures=16",
    "data.validation.num_pictures=4",
    "data.evaluation.num_pictures=4",
    "synthesis.num_pictures=8",
    "stages.semantic_alignment.num_epochs=1",
    "stages.ris_joint.num_epochs=3",
    "resources.num_actors=1",
]


def targets_of(*expressions: Sequence[Tensor]) -> Targets:
    """Targets of some expressions, each given as (masks, points, point_labels, is_referent)."""
    counts = torch.tensor([len(parts[0]) for parts in expressions])
    parts = (torch.cat(part) for part in zip(*expressions, strict=True))
    return Targets(torch.arange(len(expressions)).repeat_interleave(counts), *parts)


def small(store: Path | str, *overrides: str) -> Curriculum:
    return load_curriculum(QUICKSTART, [*SMALL, f"store={store}", *overrides])


def two_stages(folder: Path) -> Path:
    """A file with the first and the third stage of the quickstart, to be run with `TINY`."""
    path = folder / "two-stages.yaml"
    stages = "stages: { ris_object_centric: null, domain_refinement: null }"
    path.write_text(f"base: {QUICKSTART}\nname: two-stages\n{stages}\n")
    return path


def tiny(folder: Path, store: Path | str, *overrides: str) -> Curriculum:
    return load_curriculum(two_stages(folder), [*TINY, f"store={store}", *overrides])


def here(curriculum: Curriculum) -> LocalRunner:
    """The runner of a curriculum in this process, without Ray."""
    return LocalRunner(Store(curriculum.store), curriculum.resources)


def run_here(curriculum: Curriculum, **options: Any) -> RunRecord:
    return run_curriculum(curriculum, here(curriculum), **options)


def nodes_of(record: RunRecord) -> dict[str, Node]:
    """Every table and checkpoint of a run by its name, for example labels.h.1."""
    return {named.full_name: named.node for named in record.named()}


def figures(record: RunRecord) -> list[tuple[Any, ...]]:
    """What every stage reached, and the losses of its epochs."""
    return [(stage.name, stage.metrics, stage.history) for stage in record.stages]


def count_encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count from now on the pictures that pass through the embedded world's encoders."""
    model, counts = load_curriculum(QUICKSTART).model, Counter[str]()
    nets = {"clip": image_text_encoder(model.clip, "cpu"), "sam": segmenter(model.sam, "cpu")}

    def counted(name: str, encode_images: Any) -> Any:
        def call(self: Any, pixels: Tensor) -> Any:
            counts[name] += len(pixels)
            return encode_images(self, pixels)

        return call

    for name, net in nets.items():
        monkeypatch.setattr(type(net), "encode_images", counted(name, type(net).encode_images))
    return counts


def encodings_per_picture(store: Path) -> float:
    """The rows of all features in a store, divided by the number of its different pictures."""
    nodes = Store(str(store)).complete_nodes()
    counts = [n.manifest()["counts"]["pictures"]["out"] for n in nodes if n.kind == "features"]
    files = [
        file
        for node in nodes
        if node.kind in ("samples", "d_ref")
        for file in Path(node.folder).glob("data-*.parquet")
    ]
    images = [i for f in files for i in pq.read_table(f, columns=["image"])["image"].to_pylist()]
    return sum(counts) / len({hashlib.sha256(image).digest() for image in images})

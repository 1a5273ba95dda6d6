"""(a) An epoch on stored features, against a plain PyTorch loop that encodes in every iteration.

The loop is as fair as it can be: it trains the same generator with the same code on the same
batches, encodes each picture of a batch once, holds everything else in memory, and threads decode
and resize the pictures ahead of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from ppt.batches.ahead import for_device
from ppt.batches.batch import Batch
from ppt.experiments.benchmark.measuring import shortest
from ppt.experiments.benchmark.rows import RATIO, Row, Setting, Workload
from ppt.images.pictures import check_picture
from ppt.models.image_text_encoder import ImageTextEncoder
from ppt.models.loaded import current_device, image_text_encoder, segmenter, threads
from ppt.models.segmenter import Segmenter
from ppt.training.loop import build_worker

MOST_THREADS = 8
"""The most threads that decode pictures for the loop."""


def measure_cached_epoch(setting: Setting) -> list[Row]:
    """Measure both loops at both sizes."""
    sizes = (setting.toy,) if setting.short else (setting.toy, setting.full_steps)
    return [row for work in sizes for row in _measure(work)]


def _measure(work: Workload) -> list[Row]:
    stage, device, reader = work.stage, current_device(), work.reader
    worker, chosen = build_worker(stage, device), work.chosen(reader)
    in_memory = list(reader.batches(1, 0, 1, chosen))
    images = _images(work)
    expressions = sum(len(batch.texts) for batch in in_memory)
    nets = image_text_encoder(stage.model.clip, device), segmenter(stage.model.sam, device)

    def cached() -> None:
        worker.train_epoch(1, for_device(reader.batches(1, 0, 1, chosen), device))

    def encoding() -> None:
        worker.train_epoch(1, _encoded(in_memory, images, *nets))

    with threads(stage.resources.cpus_per_worker):
        stored, encoded = shortest(work.repeats, cached, encoding)
    return [
        Row("a", work.size, "on stored features", expressions / stored, "expressions/s"),
        Row("a", work.size, "encoding every iteration", expressions / encoded, "expressions/s"),
        Row("a", work.size, "stored / encoding", encoded / stored, RATIO),
    ]


def _images(work: Workload) -> dict[str, bytes]:
    """Return the pictures of a workload as files in memory, by their keys."""
    tables = [n.read_all(columns=["picture", "image"]) for n in (work.samples, *work.others)]
    return {row["picture"]: row["image"] for table in tables for row in table.to_pylist()}


def _encoded(
    batches: Sequence[Batch], images: dict[str, bytes], clip: ImageTextEncoder, sam: Segmenter
) -> Iterator[Batch]:
    """Yield batches with features that are computed from pictures and texts when they are due."""

    def pixels(batch: Batch) -> list[Tensor]:
        pictures = [check_picture(images[key]) for key in batch.pictures]
        return [torch.stack([net.preprocess(p) for p in pictures]) for net in (clip, sam)]

    device = current_device()
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        for batch, (for_clip, for_sam) in zip(batches, pool.map(pixels, batches), strict=True):
            with torch.no_grad():
                levels = clip.encode_images(for_clip.to(device)).visual_features
                embeddings = sam.encode_images(for_sam.to(device))
                words, mask = clip.encode_words(batch.texts)
            yield replace(
                batch,
                visual_features=levels,
                segmenter_features=embeddings,
                word_features=words,
                word_mask=mask,
            )

"""(d) Encoding as a run does it, from stored files to stored features, against the bare nets."""

from __future__ import annotations

import torch

from ppt.experiments.benchmark.measuring import shortest
from ppt.experiments.benchmark.rows import RATIO, OpenRunner, Row, Setting, Workload
from ppt.images.pictures import check_picture
from ppt.models.loaded import current_device, image_text_encoder, segmenter, threads
from ppt.steps.encode import BATCH_SIZE, EncodePictures
from ppt.steps.local_runner import LocalRunner


def measure_encode_rate(setting: Setting) -> list[Row]:
    """Measure the step in this process and on Ray, at full size too unless it is short."""
    sizes = (setting.toy,) if setting.short else (setting.toy, setting.full_steps)
    rows = [row for work in sizes for row in _measure(setting, work)]
    if setting.on_ray:
        rows += _measure_runner(setting, setting.toy, setting.open_runner, rows)
    return rows


def _measure(setting: Setting, work: Workload) -> list[Row]:
    model, device, number = work.stage.model, current_device(), 0
    clip, sam = image_text_encoder(model.clip, device), segmenter(model.sam, device)
    files = work.samples.read_all(columns=["image"])["image"].to_pylist()
    pictures = [check_picture(data) for data in files]
    pixels = [torch.stack([net.preprocess(p) for p in pictures]).to(device) for net in (clip, sam)]

    @torch.inference_mode()
    def bare() -> None:
        for of_clip, of_sam in zip(*(p.split(BATCH_SIZE) for p in pixels), strict=True):
            clip.encode_images(of_clip)
            sam.encode_images(of_sam)

    def encode() -> None:
        nonlocal number
        number += 1  # in a store of its own, where nothing is encoded yet
        runner = LocalRunner(setting.store(f"encode-{work.size}-{number}"), work.stage.resources)
        runner.run(EncodePictures(work.samples, model, work.size))

    with threads(work.stage.resources.cpus_per_actor):
        # In the first round the nets' memory is fresh, which costs whichever comes first.
        step, nets = shortest(max(work.repeats, 2), encode, bare)
    return [
        Row("d", work.size, "step encode", len(files) / step, "pictures/s"),
        Row("d", work.size, "bare nets", len(files) / nets, "pictures/s"),
        Row("d", work.size, "step / bare nets", nets / step, RATIO),
    ]


def _measure_runner(
    setting: Setting, work: Workload, open_runner: OpenRunner, rows: list[Row]
) -> list[Row]:
    """Measure the step on Ray, by actors that have built their nets already."""
    step = EncodePictures(work.samples, work.stage.model, work.size)
    pictures, number = step.total(), 0
    resources = setting.curriculum.resources.model_copy(update={"num_actors": 1})
    with open_runner(setting.curriculum.model_copy(update={"resources": resources})) as runner:

        def encode() -> None:
            nonlocal number
            number += 1
            runner.store = setting.store(f"encode-ray-{number}")
            runner.run(step)

        encode()
        (seconds,) = shortest(work.repeats, encode)
    bare = next(row.value for row in rows if (row.size, row.name) == (work.size, "bare nets"))
    rate = pictures / seconds
    return [
        Row("d", work.size, "step encode on Ray, one actor", rate, "pictures/s"),
        Row("d", work.size, "step on Ray / bare nets", rate / bare, RATIO),
    ]

"""The frozen models of a process, built once each, and the device and threads that they run on.

The libraries of the nets are imported when a net is built. A process that only names its models, or
that has other things to begin with, does not wait for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ppt.config import ClipConfig, Model, SamConfig

if TYPE_CHECKING:
    from ppt.models.image_text_encoder import ImageTextEncoder
    from ppt.models.point_prompting import PointPrompting
    from ppt.models.segmenter import Segmenter


def default_device() -> str:
    """Return "cuda" if there is a GPU, and else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


_device = "cpu"


def use_device(device: str) -> None:
    """Let the steps of this process run on `device`, for example "cuda"."""
    global _device
    _device = device


def current_device() -> str:
    """Return the device on which the steps of this process run; "cpu" before `use_device`."""
    return _device


def use_threads(cpus: float) -> None:
    """Let torch compute with as many threads as a process with so many CPUs: 1.2 CPUs give two."""
    torch.set_num_threads(math.ceil(cpus))


@contextmanager
def threads(cpus: float) -> Iterator[None]:
    """A context in which torch has the threads of `use_threads`."""
    before = torch.get_num_threads()
    use_threads(cpus)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# A step may ask for a model in inference mode, where tensors are made that no gradient can pass. A
# training in the same process uses the same model, so models are built outside of that mode.


@functools.cache
def image_text_encoder(config: ClipConfig, device: str) -> ImageTextEncoder:
    """Return the encoder of pictures and texts of this process, on a device."""
    from ppt.models.build import build_image_text_encoder

    with torch.inference_mode(False):
        return build_image_text_encoder(config).to(device)


@functools.cache
def segmenter(config: SamConfig, device: str) -> Segmenter:
    """Return the segmenter of this process, on a device."""
    from ppt.models.build import build_segmenter

    with torch.inference_mode(False):
        return build_segmenter(config).to(device)


@functools.cache
def clip_fingerprint(config: ClipConfig) -> str:
    """Return the fingerprint of the encoder that `config` names; the encoder is not kept."""
    from ppt.models.build import build_image_text_encoder

    return build_image_text_encoder(config).fingerprint


@functools.cache
def sam_fingerprint(config: SamConfig) -> str:
    """Return the fingerprint of the segmenter that `config` names; the segmenter is not kept."""
    from ppt.models.build import build_segmenter

    return build_segmenter(config).fingerprint


def encoder_fingerprints(model: Model) -> dict[str, str]:
    """Return the fingerprints of both frozen models, part of the digest of all they make."""
    return {"clip": clip_fingerprint(model.clip), "sam": sam_fingerprint(model.sam)}


def build_point_prompting(model: Model, seed: int, device: str) -> PointPrompting:
    """Build f_theta with seeded initial parameters around the segmenter of this process."""
    from ppt.models.build import build_point_generator, outline_image_text_encoder
    from ppt.models.point_prompting import PointPrompting

    encoder = outline_image_text_encoder(model.clip)  # features are stored: it is not run
    torch.manual_seed(seed)
    generator = build_point_generator(
        model.point_generator,
        visual_dim=encoder.visual_dim,
        text_dim=encoder.text_dim,
        num_levels=encoder.num_levels,
    )
    return PointPrompting(generator.to(device), segmenter(model.sam, device))

"""The frozen models of a process, built once: actors and train workers ask here."""

from __future__ import annotations

import functools

import ray
import torch

from ppt.config import ClipConfig, Model, SamConfig
from ppt.models.build import (
    build_clip_encoder,
    build_point_generator,
    build_sam_decoder,
    outline_clip_encoder,
)
from ppt.models.clip_encoder import ClipEncoder
from ppt.models.point_prompting import PointPrompting
from ppt.models.sam_decoder import SamDecoder


@functools.cache
def clip_encoder(config: ClipConfig, device: str) -> ClipEncoder:
    return build_clip_encoder(config).to(device).eval()


@functools.cache
def sam_decoder(config: SamConfig, device: str) -> SamDecoder:
    return build_sam_decoder(config).to(device).eval()


def sam_decoder_at(config: SamConfig, device: str, mask_threshold: float) -> SamDecoder:
    """The process's SAM with another threshold of finished masks."""
    return SamDecoder(sam_decoder(config, device).sam, mask_threshold=mask_threshold)


@functools.cache
def clip_fingerprint(config: ClipConfig) -> str:
    """Of the encoder that `config` names; the encoder is not kept, for the driver runs none."""
    return build_clip_encoder(config).fingerprint


@functools.cache
def sam_fingerprint(config: SamConfig) -> str:
    return build_sam_decoder(config).fingerprint


@functools.cache
def pass_device() -> str:
    """`cuda` where Ray gave this actor a GPU, else `cpu`."""
    return "cuda" if ray.get_gpu_ids() else "cpu"


def build_point_prompting(model: Model, seed: int, device: str) -> PointPrompting:
    """f_theta with a seeded initial generator; the frozen SAM is the process's own."""
    clip = outline_clip_encoder(model.clip)  # features are cached: training runs no CLIP
    torch.manual_seed(seed)
    generator = build_point_generator(
        model.point_generator,
        visual_dim=clip.visual_dim,
        text_dim=clip.text_dim,
        num_stages=len(clip.taps),
    )
    return PointPrompting(generator.to(device), sam_decoder(model.sam, device))

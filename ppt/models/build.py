"""Models from their configuration."""

from __future__ import annotations

import open_clip
import torch
from segment_anything import sam_model_registry

from ppt.config import ClipConfig, PointGeneratorConfig, SamConfig
from ppt.models.clip_encoder import ClipEncoder
from ppt.models.point_generator import PointGenerator
from ppt.models.sam_decoder import SamDecoder
from ppt.toybox import backbones as toybox

RANDOM = "random"
"""As `weights`: a full-size net with seeded random numbers, for tests of shapes and speed."""


CLIP_SURGERY_TEMPLATES = tuple(f("{}") for f in open_clip.OPENAI_IMAGENET_TEMPLATES) + (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
"""CLIP Surgery's 85: the 80 of ImageNet and five more."""


def build_clip_encoder(config: ClipConfig) -> ClipEncoder:
    """The frozen CLIP; raises ValueError that says which weights or which name to give.

    OpenAI's own weights belong to open_clip's names that end in `-quickgelu`.
    """
    if config.name == "toybox":
        _refuse_weights("clip", config.weights)
        clip, tokenizer = toybox.load_clip(), toybox.tokenizer()
        taps, surgery_depth, templates = toybox.TAPS, toybox.SURGERY_DEPTH, toybox.TEMPLATES
        mean, std = toybox.CLIP_MEAN, toybox.CLIP_STD
    else:
        if config.name not in open_clip.list_models():
            raise ValueError(f"model.clip.name: open_clip knows no {config.name!r}")
        weights = _require_weights("clip", config.name, config.weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            clip = open_clip.create_model(config.name, pretrained=None)
        if weights is not None:
            open_clip.load_checkpoint(clip, weights)
        tokenizer = open_clip.get_tokenizer(config.name)
        taps, surgery_depth, templates = (4, 8, 12), 6, CLIP_SURGERY_TEMPLATES  # ViT-B/16
        mean, std = clip.visual.preprocess_cfg["mean"], clip.visual.preprocess_cfg["std"]
    return ClipEncoder(
        clip,
        tokenizer,
        image_size=config.image_size,
        taps=config.taps or tuple(taps),
        surgery_depth=config.surgery_depth or surgery_depth,
        templates=config.templates or templates,
        mean=mean,
        std=std,
    )


def build_sam_decoder(config: SamConfig) -> SamDecoder:
    """The frozen SAM; raises ValueError that says which weights or which name to give."""
    if config.name == "toybox":
        _refuse_weights("sam", config.weights)
        return SamDecoder(toybox.load_sam())
    if config.name not in sam_model_registry:
        known = ", ".join(["toybox", *sam_model_registry])
        raise ValueError(f"model.sam.name must be one of {known}, got {config.name!r}")
    weights = _require_weights("sam", config.name, config.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SamDecoder(sam_model_registry[config.name](checkpoint=weights))


def build_point_generator(
    config: PointGeneratorConfig, visual_dim: int, text_dim: int, num_stages: int
) -> PointGenerator:
    """The trainable part with fresh parameters from torch's global generator."""
    return PointGenerator(visual_dim, text_dim, num_stages, **config.model_dump())


def _require_weights(part: str, name: str, weights: str | None) -> str | None:
    if weights is None:
        raise ValueError(
            f"model.{part}.weights must be the path of a checkpoint for {name!r} (none is "
            f"downloaded; {RANDOM!r} is for tests only)"
        )
    return None if weights == RANDOM else weights


def _refuse_weights(part: str, weights: str | None) -> None:
    if weights is not None:
        raise ValueError(f"model.{part}.weights: the toybox has its own, got {weights!r}")

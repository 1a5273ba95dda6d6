"""The models by their names in the configuration."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ppt.config import ClipConfig, Model, PointGeneratorConfig, SamConfig
from ppt.config.messages import near
from ppt.models.clip_builder import build_clip, build_toybox_clip, plain_clip
from ppt.models.image_text_encoder import ImageTextEncoder
from ppt.models.mobile_sam import build_mobile_sam
from ppt.models.point_generator import PointGenerator
from ppt.models.sam import build_sam, build_toybox_sam
from ppt.models.segmenter import Segmenter
from ppt.models.weights import RANDOM

SEGMENTERS: dict[str, Callable[[SamConfig], Segmenter]] = {
    "toybox": build_toybox_sam,
    "vit_b": build_sam,
    "vit_l": build_sam,
    "vit_h": build_sam,
    "mobile_sam": build_mobile_sam,
}
"""The builder of each segmenter, by `model.sam.name`."""

IMAGE_TEXT_ENCODERS: dict[str, Callable[[ClipConfig], ImageTextEncoder]] = {
    "toybox": build_toybox_clip,
}
"""The builder of each encoder of pictures and texts, by `model.clip.name`.

Every other name is that of a CLIP of open_clip.
"""


def build_segmenter(config: SamConfig) -> Segmenter:
    """Build the frozen segmenter. Raises ValueError for an unknown name or wrong weights."""
    _check_sam_name(config.name)
    return SEGMENTERS[config.name](config)


def check_names(model: Model) -> None:
    """Check the names of CLIP and SAM; nothing is built.

    Raises ValueError, which has a line for each name that is unknown.
    """
    faults = []
    for name, known, check in (
        (model.clip.name, IMAGE_TEXT_ENCODERS, plain_clip),
        (model.sam.name, SEGMENTERS, _check_sam_name),
    ):
        try:
            if name not in known:
                check(name)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))


def _check_sam_name(name: str) -> None:
    if name not in SEGMENTERS:
        hint = near(name, SEGMENTERS)
        raise ValueError(
            f"model.sam.name must be one of {', '.join(SEGMENTERS)}, got {name!r}{hint}"
        )


def outline_segmenter(config: SamConfig) -> Segmenter:
    """Build the segmenter without its numbers, on torch's meta device: only its sizes are known."""
    with torch.device("meta"):
        return build_segmenter(config.model_copy(update={"weights": RANDOM}))


def build_image_text_encoder(config: ClipConfig) -> ImageTextEncoder:
    """Build the frozen encoder of pictures and texts.

    Raises ValueError for an unknown name and for weights that do not fit it.
    """
    return IMAGE_TEXT_ENCODERS.get(config.name, build_clip)(config)


def outline_image_text_encoder(config: ClipConfig) -> ImageTextEncoder:
    """Build the encoder without its numbers, on torch's meta device: only its sizes are known."""
    with torch.device("meta"):
        return build_image_text_encoder(config.model_copy(update={"weights": RANDOM}))


def build_point_generator(
    config: PointGeneratorConfig, visual_dim: int, text_dim: int, num_levels: int
) -> PointGenerator:
    """Build the trainable part with fresh parameters from torch's global generator."""
    return PointGenerator(visual_dim, text_dim, num_levels, **config.model_dump())

"""Models from their configuration."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from ppt.config import ClipConfig, PointGeneratorConfig, SamConfig
from ppt.models.clip_encoder import ClipEncoder
from ppt.models.point_generator import PointGenerator
from ppt.models.sam_decoder import SamDecoder
from ppt.models.weights import SAM_WIDTHS, Net, is_torchscript, load_net
from ppt.toybox import backbones as toybox

RANDOM = "random"
"""As `weights`: a full-size net with seeded random numbers, for tests of shapes and speed."""

NUM_STAGES = 3
"""Taps where the configuration names none: after each third of the blocks, as 4, 8, 12 (paper)."""

SURGERY_DEPTH = 6
"""Blocks with CLIP Surgery's second path: its own choice for 12 blocks, ours for more."""

CLIP_SURGERY_TEMPLATES = tuple(f("{}") for f in open_clip.OPENAI_IMAGENET_TEMPLATES) + (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
"""CLIP Surgery's 85: the 80 of ImageNet and five more."""


# ---------------------------------------------------------------- CLIP


def build_clip_encoder(config: ClipConfig) -> ClipEncoder:
    """The frozen CLIP; raises ValueError that says which weights or which name to give."""
    if config.name == "toybox":
        _refuse_weights("clip", config.weights)
        return _toybox_encoder(config, toybox.load_clip())
    build = functools.partial(open_clip.CLIP, **plain_clip(config.name))
    weights = _require_weights("clip", config.name, config.weights)
    if weights == RANDOM:
        return _encoder(config, _random(build), {})
    path, published = _find_clip(config.name, weights)
    expected = f"CLIP {config.name}"
    clip = load_net(build, path, field="model.clip.weights", expected=expected)
    return _encoder(config, clip, published)


def outline_clip_encoder(config: ClipConfig) -> ClipEncoder:
    """The same encoder without its numbers (on torch's meta device): its sizes, at no cost."""
    with torch.device("meta"):
        if config.name == "toybox":
            return _toybox_encoder(config, toybox.build_clip())
        return _encoder(config, open_clip.CLIP(**plain_clip(config.name)), {})


def plain_clip(name: str) -> dict[str, Any]:
    """open_clip's configuration of a CLIP whose two towers are its own plain transformers.

    Raises ValueError for other names: ResNet, ConvNeXt and the rest have no blocks to tap, other
    text towers have no words that are read from left to right, and no tokenizer in open_clip.
    """
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise ValueError(f"model.clip.name: open_clip knows no {name!r}, try ViT-B-16-quickgelu")
    vision, text = config["vision_cfg"], config["text_cfg"]
    tokenizer = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if "timm_model_name" in vision:
        reason = f"its image tower is timm's {vision['timm_model_name']}"
    elif not isinstance(vision["layers"], int):
        reason = "its image tower is a ResNet"
    elif "multimodal_cfg" in config or vision.get("attentional_pool"):
        reason = "it is a CoCa"
    elif tokenizer:
        reason = f"its text needs {tokenizer}"
    else:
        return config
    raise ValueError(
        f"model.clip.name must be a plain ViT of open_clip (ViT-B-16, ViT-L-14, ...), got {name!r}:"
        f" {reason}"
    )


def _encoder(config: ClipConfig, clip: open_clip.CLIP, published: dict[str, Any]) -> ClipEncoder:
    depth = len(clip.visual.transformer.resblocks)
    thirds = tuple(round(depth * n / NUM_STAGES) for n in range(1, NUM_STAGES + 1))
    return _configured(
        config,
        clip,
        open_clip.get_tokenizer(config.name),
        taps=thirds,
        surgery_depth=min(SURGERY_DEPTH, depth),
        templates=CLIP_SURGERY_TEMPLATES,
        mean=published.get("mean", open_clip.OPENAI_DATASET_MEAN),
        std=published.get("std", open_clip.OPENAI_DATASET_STD),
    )


def _toybox_encoder(config: ClipConfig, clip: open_clip.CLIP) -> ClipEncoder:
    return _configured(
        config,
        clip,
        toybox.tokenizer(),
        taps=toybox.TAPS,
        surgery_depth=toybox.SURGERY_DEPTH,
        templates=toybox.TEMPLATES,
        mean=toybox.CLIP_MEAN,
        std=toybox.CLIP_STD,
    )


def _configured(config: ClipConfig, clip: open_clip.CLIP, tokenizer, **own: Any) -> ClipEncoder:
    """`own` are the net's settings where the configuration has none."""
    for name in ("taps", "surgery_depth", "templates"):
        own[name] = getattr(config, name) or own[name]
    try:
        return ClipEncoder(clip, tokenizer, image_size=config.image_size, **own)
    except ValueError as error:
        raise ValueError(f"model.clip.{error}") from error


def _find_clip(name: str, weights: str) -> tuple[Path, dict[str, Any]]:
    """A checkpoint's path and what is published of it: `quick_gelu`, `mean`, `std` where known.

    `weights` is one of open_clip's tags, then open_clip's cache has the file or fetches it, or a
    path. Raises ValueError for neither, and where the name has another activation.
    """
    tag = open_clip.get_pretrained_cfg(name, weights)
    if tag:
        check_activation(name, weights, tag)
        try:
            return Path(open_clip.download_pretrained(tag)), tag
        except Exception as error:  # whatever the way to the hub raises
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"model.clip.weights: open_clip could not fetch {weights!r} of {name}, give the "
                f"path of its file instead: {reason}"
            ) from error
    path = Path(weights).expanduser()
    if path.exists():
        published = _published_beside(path)
        check_activation(name, weights, published)
        return path, published
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
    raise ValueError(
        f"model.clip.weights: {weights} is neither a file nor a tag of open_clip for {name} "
        f"(tags: {tags})"
    )


def _published_beside(path: Path) -> dict[str, Any]:
    """What the file itself, or the hub's description beside it, says of a checkpoint."""
    if is_torchscript(path):
        return {"quick_gelu": True}
    beside = path.parent / "open_clip_config.json"
    if not path.name.startswith("open_clip_") or not beside.is_file():
        return {}
    try:
        settings = json.loads(beside.read_text())
        quick_gelu = settings["model_cfg"].get("quick_gelu", False)
        return {**settings["preprocess_cfg"], "quick_gelu": quick_gelu}
    except (ValueError, KeyError) as error:
        raise ValueError(f"model.clip.weights: {beside} is damaged: {error!r}") from error


def check_activation(name: str, weights: str, published: dict[str, Any]) -> None:
    """The same tensors fit both activations: only the name tells them apart.

    Raises ValueError where what is `published` of the weights (a tag's settings) says another one.
    """
    named = plain_clip(name).get("quick_gelu", False)
    trained = published.get("quick_gelu", named)  # unknown: the name is believed
    if trained != named:
        base = name.removesuffix("-quickgelu")
        activation, right = ("QuickGELU", f"{base}-quickgelu") if trained else ("GELU", base)
        raise ValueError(
            f"model.clip.name must be {right!r} for {weights}, which was trained with {activation}"
            f", got {name!r}"
        )


# ---------------------------------------------------------------- SAM


def build_sam_decoder(config: SamConfig) -> SamDecoder:
    """The frozen SAM; raises ValueError that says which weights or which name to give."""
    if config.name == "toybox":
        _refuse_weights("sam", config.weights)
        return SamDecoder(toybox.load_sam())
    build = _known_sam(config.name)
    weights = _require_weights("sam", config.name, config.weights)
    if weights == RANDOM:
        return SamDecoder(_random(build))
    path, expected = Path(weights).expanduser(), f"SAM {config.name}"
    return SamDecoder(load_net(build, path, field="model.sam.weights", expected=expected))


def outline_sam_decoder(config: SamConfig) -> SamDecoder:
    """The same decoder without its numbers (on torch's meta device): its sizes, at no cost."""
    if config.name == "toybox":
        return SamDecoder(toybox.load_sam())  # so small that there is nothing to save
    with torch.device("meta"):
        return SamDecoder(_known_sam(config.name)())


def _known_sam(name: str) -> Callable[[], Sam]:
    if name not in SAM_WIDTHS:
        known = ", ".join(["toybox", *SAM_WIDTHS])
        raise ValueError(f"model.sam.name must be one of {known}, got {name!r}")
    return sam_model_registry[name]


# ---------------------------------------------------------------- the trainable part


def build_point_generator(
    config: PointGeneratorConfig, visual_dim: int, text_dim: int, num_stages: int
) -> PointGenerator:
    """The trainable part with fresh parameters from torch's global generator."""
    return PointGenerator(visual_dim, text_dim, num_stages, **config.model_dump())


def _random(build: Callable[[], Net]) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def _require_weights(part: str, name: str, weights: str | None) -> str:
    if weights is None:
        tag = " or one of open_clip's tags" if part == "clip" else ""
        raise ValueError(
            f"model.{part}.weights must be the path of a checkpoint for {name!r}{tag} "
            f"({RANDOM!r} is for tests only)"
        )
    return weights


def _refuse_weights(part: str, weights: str | None) -> None:
    if weights is not None:
        raise ValueError(f"model.{part}.weights: the toybox has its own, got {weights!r}")

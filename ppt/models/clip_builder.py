"""CLIPs by name: which of open_clip's nets, with which weights and settings."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import open_clip

from ppt.config import ClipConfig
from ppt.config.messages import near
from ppt.models.clip_encoder import ClipEncoder
from ppt.models.weights import RANDOM, is_torchscript, load_net, random_net, refuse_weights
from ppt.toybox import backbones as toybox

NUM_LEVELS = 3
"""How many levels are given out where the configuration names no taps: each third of the blocks.

Of the 12 blocks of ViT-B these are the paper's 4, 8 and 12."""

SURGERY_DEPTH = 6
"""The blocks with CLIP Surgery's second path: its authors' choice for 12 blocks, ours for more."""

CLIP_SURGERY_TEMPLATES = tuple(f("{}") for f in open_clip.OPENAI_IMAGENET_TEMPLATES) + (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
"""The 85 templates of CLIP Surgery: the 80 of ImageNet and five more."""


def build_clip(config: ClipConfig) -> ClipEncoder:
    """Build a plain CLIP of open_clip. Raises ValueError for a wrong name or wrong weights."""
    build = functools.partial(open_clip.CLIP, **plain_clip(config.name))
    if config.weights is None:
        raise ValueError(
            f"model.clip.weights must be the path of a checkpoint of CLIP {config.name} or one of "
            f"open_clip's tags ({RANDOM!r} is for tests only)"
        )
    published: dict[str, Any] = {}
    if config.weights == RANDOM:
        clip = random_net(build)
    else:
        path, published = _find_clip(config.name, config.weights)
        expected = f"CLIP {config.name}"
        clip = load_net(build, path, field="model.clip.weights", expected=expected)
    depth = len(clip.visual.transformer.resblocks)
    return _configured(
        config,
        clip,
        open_clip.get_tokenizer(config.name),
        taps=tuple(round(depth * n / NUM_LEVELS) for n in range(1, NUM_LEVELS + 1)),
        surgery_depth=min(SURGERY_DEPTH, depth),
        templates=CLIP_SURGERY_TEMPLATES,
        mean=published.get("mean", open_clip.OPENAI_DATASET_MEAN),
        std=published.get("std", open_clip.OPENAI_DATASET_STD),
    )


def build_toybox_clip(config: ClipConfig) -> ClipEncoder:
    """Build the embedded CLIP. Raises ValueError where weights are named."""
    if config.weights == RANDOM:
        clip = random_net(toybox.build_clip)
    else:
        refuse_weights("model.clip.weights", config.weights)
        clip = toybox.load_clip()
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
    """Wrap a net; `own` are its settings, which the configuration may override."""
    for name in ("taps", "surgery_depth", "templates"):
        own[name] = getattr(config, name) or own[name]
    try:
        return ClipEncoder(clip, tokenizer, image_size=config.image_size, **own)
    except ValueError as error:
        raise ValueError(f"model.clip.{error}") from error


def plain_clip(name: str) -> dict[str, Any]:
    """Return open_clip's configuration of a CLIP whose two towers are its own plain transformers.

    Raises ValueError for other names: ResNet, ConvNeXt and the rest have no blocks to tap, and
    other text towers do not read from left to right or need a tokenizer that open_clip lacks.
    """
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        hint = near(name, open_clip.list_models()) or ", try ViT-B-16-quickgelu"
        raise ValueError(f"model.clip.name: open_clip knows no {name!r}{hint}")
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


def _find_clip(name: str, weights: str) -> tuple[Path, dict[str, Any]]:
    """Find a checkpoint.

    Args:
        name: a plain CLIP of open_clip.
        weights: a path, or one of open_clip's tags. A tag's file is taken from open_clip's cache or
            fetched by it.

    Returns:
        The path, and what is published of the checkpoint: `quick_gelu`, `mean`, `std` where known.

    Raises:
        ValueError: `weights` is neither, or was trained with another activation than `name` has.
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
    """Read what the file itself, or the hub's description beside it, says of a checkpoint."""
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
    """Check the activation: the same tensors fit both, and only the name tells them apart.

    Raises ValueError where what is `published` of the weights (a tag's settings) names another one.
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

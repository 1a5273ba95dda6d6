"""The weights of the frozen CLIP and SAM: whether they load, and whether they are as published."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import open_clip
from huggingface_hub import try_to_load_from_cache

from ppt.config import ClipConfig, Data, SamConfig
from ppt.doctor.check import Check
from ppt.downloads.published_files import PublishedFile, published_weights
from ppt.downloads.web import sha256_of
from ppt.models.build import outline_image_text_encoder, outline_segmenter
from ppt.models.clip_builder import check_activation
from ppt.models.loaded import clip_fingerprint, sam_fingerprint
from ppt.models.weights import RANDOM

Config = TypeVar("Config", ClipConfig, SamConfig)
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""The weight files of a model on the Hugging Face hub, in the order in which open_clip tries them.

open_clip has no public name for them.
"""


def check_clip(config: ClipConfig, data: Data) -> Check:
    """Check CLIP. Nothing is downloaded: a tag of open_clip is looked for in its cache."""
    name = "model.clip"
    try:
        # The name is checked before the weights, because it decides which weights to get.
        outline_image_text_encoder(config)
        tag = open_clip.get_pretrained_cfg(config.name, config.weights or "")
        if tag:
            check_activation(config.name, config.weights or "", tag)
    except ValueError as error:
        return Check(name, "wrong", str(error))
    if tag:
        return _check_tag(name, config, tag)
    return _check(name, config, published_weights(config.name), clip_fingerprint, data)


def _check_tag(name: str, config: ClipConfig, tag: dict[str, Any]) -> Check:
    """Check weights that are a tag of open_clip, whose settings are `tag`."""
    found = f"{config.name}, {config.weights!r}: a tag of open_clip"
    path = _cached(tag)
    if path is None:
        todo = (
            "it will be downloaded when a run starts, on every machine, which fails without a "
            f"network: there, set {name}.weights to the path of its file"
        )
        return Check(name, "warning", f"{found}, not in its cache", todo)
    try:
        clip_fingerprint(config.model_copy(update={"weights": str(path)}))
    except ValueError as error:
        return Check(name, "wrong", str(error), "delete it, so that open_clip downloads it again")
    return Check(name, "ok", f"{found}, in its cache: {path}")


def _cached(tag: dict[str, Any]) -> Path | None:
    """Return the file that `open_clip.download_pretrained` finds without a download, or None."""
    if not tag.get("hf_hub"):
        path = Path("~/.cache/clip").expanduser() / os.path.basename(tag["url"])
        return path if path.is_file() else None
    repo, named = os.path.split(tag["hf_hub"])  # "ORGANISATION/MODEL/", or with a file's name
    files = (named,) if named else _HUB_FILES
    paths = (try_to_load_from_cache(repo, file) for file in files)
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def check_sam(config: SamConfig, data: Data) -> Check:
    """Check SAM."""
    name = "model.sam"
    try:
        outline_segmenter(config)
    except ValueError as error:
        return Check(name, "wrong", str(error))
    return _check(name, config, published_weights(config.name), sam_fingerprint, data)


def _check(
    name: str,
    config: Config,
    published: PublishedFile | None,
    fingerprint_of: Callable[[Config], str],
    data: Data,
) -> Check:
    """Load weights that are a file, random or embedded, and check them."""
    get = ""
    if published:
        get = (
            f"run `ppt download {published.name}`, or get {published.file}, {published.size} "
            f"({published.urls[0]}; SHA-256 {published.sha256}), and set {name}.weights to its path"
        )
    elif name == "model.clip" and config.name != "toybox":
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        get = f"set {name}.weights to a checkpoint or one of open_clip's tags: {', '.join(tags)}"
    path = Path(config.weights).expanduser() if config.weights else None
    if config.name != "toybox" and config.weights != RANDOM and (not path or not path.exists()):
        lack = f"{config.weights} is not there" if config.weights else "no weights are named"
        return Check(name, "missing", f"{config.name}: {lack}", get)
    try:
        fingerprint = fingerprint_of(config)
    except ValueError as error:
        return Check(name, "wrong", str(error), get)
    found = f"{config.name}, {config.weights or 'embedded'}, fingerprint {fingerprint[:16]}"
    if config.weights == RANDOM:
        todo = f"random numbers are for tests: {get or f'set {name}.weights to null'}"
        return Check(name, "warning", found, todo)
    if config.name == "toybox":
        if all(getattr(data, role).format.startswith("toybox") for role in type(data).model_fields):
            return Check(name, "ok", found)
        todo = f"it knows the embedded world only, its masks mean nothing here: set {name}.name"
        return Check(name, "warning", found, todo)
    assert path is not None
    if published is None:
        return Check(name, "ok", found)
    if sha256_of(path) != published.sha256:
        todo = f"it fits, but is not the published {published.file}"
        return Check(name, "warning", found, todo)
    return Check(name, "ok", found + ", the published file")

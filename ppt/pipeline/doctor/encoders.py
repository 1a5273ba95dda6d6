"""The weights of the frozen CLIP and SAM: whether they load, and are those published."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_WEIGHTS_NAME
from open_clip.pretrained import _get_safe_alternatives

from ppt.config import ClipConfig, Data, SamConfig
from ppt.models.build import (
    RANDOM,
    check_activation,
    outline_clip_encoder,
    outline_sam_decoder,
)
from ppt.pipeline.doctor.check import Check
from ppt.pipeline.doctor.published import PublishedFile, clip_file, sam_file
from ppt.pipeline.models import clip_fingerprint, sam_fingerprint


def check_clip(config: ClipConfig, data: Data) -> Check:
    """Nothing is fetched: one of open_clip's tags is looked for in its cache."""
    name = "model.clip"
    try:
        outline_clip_encoder(config)  # the name first: what to get depends on it
        tag = open_clip.get_pretrained_cfg(config.name, config.weights or "")
        if tag:
            check_activation(config.name, config.weights or "", tag)
    except ValueError as error:
        return Check(name, "wrong", str(error))
    if tag:
        return _check_tag(name, config, tag)
    return _check(name, config, clip_file(config.name), clip_fingerprint, data)


def _check_tag(name: str, config: ClipConfig, tag: dict[str, Any]) -> Check:
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
    """The file that `open_clip.download_pretrained` finds without downloading it."""
    if not tag.get("hf_hub"):
        path = Path("~/.cache/clip").expanduser() / os.path.basename(tag["url"])
        return path if path.is_file() else None
    repo, name = os.path.split(tag["hf_hub"])
    name = name or HF_WEIGHTS_NAME
    paths = (try_to_load_from_cache(repo, file) for file in (*_get_safe_alternatives(name), name))
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def check_sam(config: SamConfig, data: Data) -> Check:
    name = "model.sam"
    try:
        outline_sam_decoder(config)
    except ValueError as error:
        return Check(name, "wrong", str(error))
    return _check(name, config, sam_file(config.name), sam_fingerprint, data)


def _check(name, config, published: PublishedFile | None, fingerprint_of, data: Data) -> Check:
    get = ""
    if published:
        get = (
            f"get {published.name} ({published.source}; SHA-256 {published.sha256}), put it there "
            f"or set {name}.weights"
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
    if config.name == "toybox":
        if all(getattr(data, role).format.startswith("toybox") for role in type(data).model_fields):
            return Check(name, "ok", found)
        todo = f"knows the embedded world only, its masks mean nothing here: set {name}.name"
        return Check(name, "warning", found, todo)
    if config.weights == RANDOM:
        return Check(name, "warning", found, f"random numbers are for tests: {get}")
    assert path is not None
    if published and _sha256(path) != published.sha256:
        todo = f"fits, but is not {published.name.split(',')[0]} as published: well if you know why"
        return Check(name, "warning", found, todo)
    return Check(name, "ok", found + (", the published file" if published else ""))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

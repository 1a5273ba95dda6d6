"""The weights of the frozen CLIP and SAM: whether they load, and are those published."""

from __future__ import annotations

import hashlib
from pathlib import Path

import open_clip

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
    """Nothing is fetched: one of open_clip's tags is only named."""
    name = "model.clip"
    try:
        outline_clip_encoder(config)  # the name first: what to get depends on it
        tag = open_clip.get_pretrained_cfg(config.name, config.weights or "")
        if tag:
            check_activation(config.name, config.weights or "", tag)
    except ValueError as error:
        return Check(name, "wrong", str(error))
    if tag:
        found = f"{config.name}, {config.weights!r}: a tag of open_clip"
        todo = "every machine takes it from open_clip's cache or fetches it when a run starts"
        return Check(name, "warning", found, todo)
    return _check(name, config, clip_file(config.name), clip_fingerprint, data)


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

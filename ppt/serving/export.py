"""A trained stage as a folder that travels, which `ppt export` writes.

The folder has what a checkpoint in a store has, without the optimiser: the parameters of the point
generator (`generator.safetensors`), the history of the training (`metadata.json`) and a manifest
that says how to build the model and which fingerprints its encoders have. The manifest also holds
the calibration of the scores, which otherwise only the run knows, and a SHA-256 of each file.
`README.md` is the model card. Paths of weights are cut to the names of their files.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

import ppt
from ppt.config import ConfigError, Model
from ppt.config.load import load_run
from ppt.downloads.web import sha256_of
from ppt.serving.stored_checkpoint import StoredCheckpoint, open_checkpoint, remedy
from ppt.store.checkpoint_files import GENERATOR, MANIFEST, METADATA
from ppt.store.checksums import check_files, checksum_of, seal, unseal
from ppt.store.disk import check_writable, replacing
from ppt.store.given import SUMMARY

CARD = "README.md"

FILES = (GENERATOR, METADATA)
"""The files of an exported model of which its manifest has checksums."""

EMBEDDED = {"toybox", "toybox_scenes", "toybox_objects", "synthesis"}
"""The models and data that are made by ppt."""


def export_model(run: str | Path, out: str | Path, stage: str | None = None) -> Path:
    """Write a trained stage of a run as a folder that `Predictor.from_pretrained` loads.

    Args:
        run: the folder of a finished run.
        out: the folder to write, which must be new or empty.
        stage: a stage of the run; by default the run's chosen stage.

    Returns:
        The path of the folder.

    Raises:
        ConfigError: if the run has no such checkpoint or a file of it is damaged, or if `out` holds
            something.
    """
    run, out = Path(run), Path(out)
    checkpoint = open_checkpoint(run, stage)
    if not (run / SUMMARY).is_file():
        raise ConfigError(f"{str(run)!r} has no {SUMMARY}: give the folder of a finished run")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out: {str(out)!r} is there already: give a folder that is new or empty")
    stored = unseal((checkpoint.folder / MANIFEST).read_bytes())
    expected = {name: stored["checksums"][name] for name in FILES if "checksums" in stored}
    check_files(checkpoint.folder, expected, remedy(checkpoint.folder))
    check_writable(out, "out")
    checksums = {}
    for name in FILES:
        shutil.copyfile(checkpoint.folder / name, out / name)
        checksums[name] = {
            **checksum_of((out / name).read_bytes()),
            "sha256": sha256_of(out / name),
        }
    (out / CARD).write_text(model_card(run, checkpoint))
    summary, calibration = unseal((run / SUMMARY).read_bytes()), checkpoint.calibration
    manifest = {
        **stored,
        "ppt": ppt.__version__,
        "run": summary["name"],
        "stage": _stage_of(summary, checkpoint.digest)["name"],
        "model": _portable(checkpoint.model).model_dump(mode="json"),
        "calibration": asdict(calibration) if calibration else None,
        "checksums": checksums,
    }
    (out / MANIFEST).write_bytes(seal(manifest))  # last: it makes the folder complete
    return out


def fetch_model(url: str) -> Path:
    """Fetch an exported model from a URL, and return the local folder in which it is kept.

    The files are kept in a folder `ppt` beside those of torch.hub (`TORCH_HOME`) and compared with
    the checksums of the manifest; those that are there and whole are not fetched again.

    Args:
        url: the address of the folder, of any kind that fsspec reads, for example `https` or `s3`.

    Raises:
        ConfigError: if there is no exported model, or if a file is not as the manifest says.
    """
    try:
        fs, root = fsspec.core.url_to_fs(url.rstrip("/"))
        content = fs.cat_file(f"{root}/{MANIFEST}")
        checksums = unseal(content)["checksums"]
        wanted = {name: checksums[name]["sha256"] for name in FILES}
        folder = Path(torch.hub.get_dir(), "ppt", hashlib.sha256(content).hexdigest())
        folder.mkdir(parents=True, exist_ok=True)
        for name, sha256 in wanted.items():
            if (folder / name).is_file() and sha256_of(folder / name) == sha256:
                continue
            with replacing(folder / name) as temporary:
                fs.get_file(f"{root}/{name}", str(temporary))
                if sha256_of(temporary) != sha256:
                    raise ValueError(f"{name} has not the SHA-256 that the manifest tells")
        with replacing(folder / MANIFEST) as temporary:
            temporary.write_bytes(content)
    except Exception as error:  # each filesystem has its own
        raise ConfigError(
            f"model: {url} cannot be fetched: {type(error).__name__}: {error}: give the address of "
            "a folder that `ppt export` wrote"
        ) from error
    return folder


def model_card(run: Path, checkpoint: StoredCheckpoint) -> str:
    """Return the text of the model card: data, encoders, stages, figures, limits and licence."""
    summary, curriculum = unseal((run / SUMMARY).read_bytes()), load_run(run.absolute())
    data = {
        role: getattr(curriculum.data, role).model_dump(mode="json")
        for role in type(curriculum.data).model_fields
    }
    model = _portable(checkpoint.model)
    parts = [values["format"] for values in data.values()] + [model.clip.name, model.sam.name]
    environment = Environment(
        loader=PackageLoader("ppt.serving", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("card.md.jinja").render(
        summary=summary,
        stages=summary["stages"],
        stage=_stage_of(summary, checkpoint.digest),
        data={role: _described(summary, role, values) for role, values in data.items()},
        model=model,
        checkpoint=checkpoint,
        curriculum=curriculum,
        is_embedded=set(parts) <= EMBEDDED,
        version=ppt.__version__,
    )


def _described(summary: dict[str, Any], role: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return what the card tells about a data set: its format, its keys and its counts."""
    keys = {name: value for name, value in values.items() if name != "format"}
    shown = {name: Path(v).name if _is_path(v) else v for name, v in keys.items() if v is not None}
    counts = {
        unit: summary["counts"].get(f"prepare.{role}.{unit}", {}).get("out", 0)
        for unit in ("pictures", "expressions")
    }
    return {"format": values["format"], "keys": shown, **counts}


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "/" in value


def _stage_of(summary: dict[str, Any], digest: str) -> dict[str, Any]:
    """Return the last stage of a summary whose checkpoint has this digest."""
    digests = summary["digests"]
    fits = [s for s in summary["stages"] if digests[f"checkpoints.{s['name']}"] == digest]
    return fits[-1]


def _portable(model: Model) -> Model:
    """Return the model with the names of its weights' files in place of their paths."""
    parts = {
        name: part.model_copy(update={"weights": Path(part.weights).name})
        for name, part in (("clip", model.clip), ("sam", model.sam))
        if part.weights is not None and Path(part.weights).is_file()
    }
    return model.model_copy(update=parts)

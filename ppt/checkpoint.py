"""A checkpoint is a folder: the generator's parameters, the optimizer's state, plain facts.

The frozen encoders are not in it: the manifest of a trained stage says which ones the generator
belongs to, `open_checkpoint` reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from ppt.config import ConfigError, Model
from ppt.models.frozen import hash_tensors

GENERATOR = "generator.safetensors"
OPTIMIZER = "optimizer.pt"
METADATA = "metadata.json"
MANIFEST = "manifest.json"
SUMMARY = "summary.json"  # of a run


def save_checkpoint(
    folder: str | Path,
    generator: nn.Module,
    optimizer: Optimizer | None,
    metadata: dict[str, Any],
) -> None:
    """Write the three files into `folder`, made if missing; `metadata` must be JSON-able."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous() for name, value in generator.state_dict().items()}
    save_file(state, folder / GENERATOR)
    if optimizer is not None:
        torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    (folder / METADATA).write_text(json.dumps(metadata, indent=1, sort_keys=True))


def load_checkpoint(
    folder: str | Path, generator: nn.Module, optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Read `folder` into `generator` and, if given, `optimizer`; returns the metadata.

    Raises FileNotFoundError for a missing file and ValueError naming the parameter that does not
    fit this generator.
    """
    folder = Path(folder)
    state = load_file(folder / GENERATOR)
    expected = generator.state_dict()
    for name in sorted(state.keys() | expected.keys()):
        found, wanted = (tuple(s[name].shape) if name in s else None for s in (state, expected))
        if found != wanted:
            raise ValueError(
                f"{folder / GENERATOR}: {name} is {found or 'missing'}, "
                f"the model wants {wanted or 'no such parameter'}"
            )
    generator.load_state_dict(state)
    if optimizer is not None:
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
    return json.loads((folder / METADATA).read_text())


def digest(generator: nn.Module) -> str:
    """SHA-256 (hex) of the generator's parameters."""
    return hash_tensors(generator.state_dict())


# ---------------------------------------------------------------- a trained stage's checkpoint


@dataclass(frozen=True)
class StoredCheckpoint:
    """A trained stage as it stands in a store, with all that is needed to build its model."""

    folder: Path
    digest: str
    model: Model
    encoders: dict[str, str] = field(hash=False)  # fingerprints of `clip` and `sam` in training


def open_checkpoint(run: str | Path, stage: str | None = None) -> StoredCheckpoint:
    """The checkpoint of `runs/<name>` after `stage` (None: the chosen one), or of its own folder.

    Raises ConfigError that says what is missing.
    """
    folder = Path(run).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"checkpoint: {str(run)!r} is no folder{_runs_in(folder.parent)}")
    if (folder / SUMMARY).exists():
        folder = _of_run(folder, stage)
    elif stage is not None:
        raise ConfigError(f"stage {stage!r} can be chosen in a run's folder, not in {str(run)!r}")
    missing = [name for name in (GENERATOR, MANIFEST) if not (folder / name).exists()]
    if missing:
        raise ConfigError(
            f"checkpoint: {str(folder)!r} has no {' and no '.join(missing)}: give the folder of a "
            f"finished run (with its {SUMMARY}) or of a trained stage{_runs_in(folder)}"
        )
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return StoredCheckpoint(
            folder,
            manifest["digest"],
            Model.model_validate(manifest["model"]),
            manifest["made_from"]["spec"]["encoders"],
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ConfigError(
            f"checkpoint: {folder / MANIFEST} does not say which model it belongs to "
            f"({type(error).__name__}: {error}): it is of another version; remove its folder and "
            f"run `ppt train` again"
        ) from None


def _of_run(run: Path, stage: str | None) -> Path:
    """The folder of a stage's checkpoint; of a stage with rounds the last one.

    Without `stage` it is the one that the run has chosen, in older summaries the last.
    """
    summary = json.loads((run / SUMMARY).read_text())
    if stage is None and (chosen := summary.get("chosen")):
        stage = chosen["stage"]
    names = [row["name"] for row in summary["stages"]]
    fits = [n for n in names if stage is None or stage in (n, n.rpartition(".")[0])]
    if not fits:
        trained = ", ".join(names) or "no stage"
        raise ConfigError(f"stage: {str(run)!r} has trained {trained}, got {stage!r}")
    return run.parent / "store" / "checkpoints" / summary["digests"][f"checkpoints.{fits[-1]}"]


def _runs_in(folder: Path) -> str:
    """Names of the runs in a folder, for an error's end."""
    names = sorted(path.parent.name for path in folder.glob(f"*/{SUMMARY}"))
    return f"; in {str(folder)!r} there are the runs {', '.join(names)}" if names else ""

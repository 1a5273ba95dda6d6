"""A trained stage in a store: the folder of its checkpoint, and the model to which it belongs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ppt.config import ConfigError, Model
from ppt.config.load import RUN_CURRICULUM, load_run
from ppt.config.messages import near
from ppt.models.confidence import Calibration
from ppt.store.checkpoint_files import GENERATOR, MANIFEST
from ppt.store.checksums import check_files, unseal
from ppt.store.given import SUMMARY, instead_of, runs_in

OTHER_VERSION = (
    "it was made by another version of ppt: run `ppt train` again with this one and, if it was "
    "exported, `ppt export`"
)
"""What is told of a checkpoint that this version cannot read, and what to do."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A trained stage in a store, with all that is needed to build its model."""

    folder: Path
    digest: str
    model: Model
    encoders: dict[str, str] = field(hash=False)  # fingerprints of `clip` and `sam` in training
    calibration: Calibration | None = None  # of its scores; None if the run is not known


def remedy(folder: Path) -> str:
    """Return what to do about a damaged checkpoint."""
    return f"remove the checkpoint's folder {folder} and run `ppt train` again"


def open_checkpoint(run: str | Path, stage: str | None = None) -> StoredCheckpoint:
    """Find the checkpoint of a trained stage.

    Args:
        run: the folder of a run, `runs/<name>`, of a checkpoint, or of an exported model.
        stage: a stage of the run; by default the run's chosen stage.

    Raises:
        ConfigError: if there is no such checkpoint; the message says what is missing.
    """
    folder = given = Path(run).expanduser().absolute()
    calibration = None
    if not folder.is_dir():
        told = instead_of("checkpoint", run) or runs_in(folder.parent)
        raise ConfigError(f"checkpoint: {str(run)!r} is no folder{told}")
    if (folder / SUMMARY).exists():
        folder, calibration = _of_run(folder, stage)
    elif stage is not None:
        raise ConfigError(f"stage {stage!r} can be chosen in a run's folder, not in {str(run)!r}")
    missing = [name for name in (GENERATOR, MANIFEST) if not (folder / name).exists()]
    if missing:
        todo = f"give the folder of a finished run (with its {SUMMARY}) or of a trained stage"
        todo = remedy(folder) if folder != given else todo + runs_in(folder)
        raise ConfigError(f"checkpoint: {str(folder)!r} has no {' and no '.join(missing)}: {todo}")
    manifest = _manifest(folder)
    checksums = manifest.get("checksums", {})
    expected = {name: checksums[name] for name in checksums if name == GENERATOR}
    check_files(folder, expected, remedy(folder))
    try:
        checkpoint = StoredCheckpoint(
            folder,
            manifest["digest"],
            _model(manifest["model"]),
            manifest["made_from"]["spec"]["encoders"],
            calibration or _calibration(manifest.get("calibration")),
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ConfigError(
            f"checkpoint: {folder / MANIFEST} does not say which model it belongs to "
            f"({type(error).__name__}: {error}): {OTHER_VERSION}"
        ) from None
    return with_weights(checkpoint, *_weights_in(checkpoint))


def _model(found: dict[str, Any]) -> Model:
    """Return the configuration of a model as it was written into JSON.

    Raises ValueError if it lacks a key of today's: what it was when the model was trained is not
    known, and it may have changed what the model predicts.
    """
    model = Model.model_validate(found)
    if model.model_dump(mode="json") != found:
        raise ValueError("its model has not the keys of today's")
    return model


def _weights_in(checkpoint: StoredCheckpoint) -> tuple[Path | None, Path | None]:
    """Return the paths of the weights of CLIP and SAM if they lie in the checkpoint's folder."""
    parts = (checkpoint.model.clip, checkpoint.model.sam)
    clip, sam = (part.weights and checkpoint.folder / part.weights for part in parts)
    return clip if clip and clip.is_file() else None, sam if sam and sam.is_file() else None


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return unseal((folder / MANIFEST).read_bytes())
    except ValueError as error:
        raise ConfigError(f"checkpoint: {folder / MANIFEST} {error}: {remedy(folder)}") from None


def with_weights(
    checkpoint: StoredCheckpoint, clip: str | Path | None, sam: str | Path | None
) -> StoredCheckpoint:
    """Return the checkpoint with other paths of its encoders' weights; None keeps a path."""
    model = checkpoint.model
    parts = {
        name: getattr(model, name).model_copy(update={"weights": str(path)})
        for name, path in (("clip", clip), ("sam", sam))
        if path is not None
    }
    return replace(checkpoint, model=model.model_copy(update=parts))


def _of_run(run: Path, stage: str | None) -> tuple[Path, Calibration | None]:
    """Return the folder of a stage's checkpoint and the calibration of its scores.

    For a stage with rounds they are those of the last round.

    Without `stage`, it is the run's chosen stage. Older summaries name none, so that the last stage
    is taken.
    """
    try:
        chosen, trained = _of_summary(unseal((run / SUMMARY).read_bytes()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = str(error) if type(error) in (OSError, ValueError) else "is damaged"
        raise ConfigError(
            f"checkpoint: {run / SUMMARY} {told}: run `ppt report` with the run's curriculum and "
            "overrides, which writes it again"
        ) from None
    wanted = stage or chosen
    fits = [name for name in trained if wanted in (None, name, name.rpartition(".")[0])]
    if not fits:
        names = ", ".join(trained) or "no stage"
        hint = near(str(wanted), trained)
        raise ConfigError(f"stage: {str(run)!r} has trained {names}, got {wanted!r}{hint}")
    digest, calibration = trained[fits[-1]]
    return _checkpoint(run, digest), calibration


def _of_summary(
    summary: dict[str, Any],
) -> tuple[str | None, dict[str, tuple[str, Calibration | None]]]:
    """Return the chosen stage, if there is one, and what the summary tells of each stage.

    Raises LookupError, TypeError or ValueError if it is no summary.
    """
    chosen = summary.get("chosen")
    trained: dict[str, tuple[str, Calibration | None]] = {}
    for row in summary["stages"]:
        digest = summary["digests"][f"checkpoints.{row['name']}"]
        trained[str(row["name"])] = str(digest), _calibration(row.get("calibration"))
    return str(chosen["stage"]) if chosen else None, trained


def _calibration(found: dict[str, Any] | None) -> Calibration | None:
    """Return a calibration as it was written into JSON, if there is one."""
    return Calibration(tuple(map(float, found["weights"])), float(found["bias"])) if found else None


def _checkpoint(run: Path, digest: str) -> Path:
    """Return the folder of a run's checkpoint in its store, which may lie elsewhere by now.

    Raises ConfigError, which names what is needed, if it is not there.
    """
    places = [root / "store" / "checkpoints" / digest for root in _stores(run)]
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(
        f"checkpoint: {str(run)!r} needs the folder store/checkpoints/{digest} of the store in "
        f"which it was trained: it is not in {' nor in '.join(repr(str(p)) for p in places)}; copy "
        f"it to the first place"
    )


def _stores(run: Path) -> list[Path]:
    """Return where the store of a run may be: beside its folder, or where the run was trained."""
    stores = [run.parent]
    if (run / RUN_CURRICULUM).is_file():
        store = load_run(run).store
        if "://" not in store and Path(store) != run.parent:
            stores.append(Path(store))
    return stores

"""Masks for one's own pictures and expressions, by a trained stage.

ppt predict photo.jpg "man in the green shirt" --checkpoint runs/quickstart
ppt predict --table pictures.csv --checkpoint runs/quickstart --out predictions
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.common import command, run_alone
from ppt.checkpoint import StoredCheckpoint, open_checkpoint
from ppt.config import ConfigError, Resources
from ppt.data.pictures import UnreadablePicture
from ppt.pipeline.predict import predict_table
from ppt.predict import PicturePrediction, Predictor, save_mask, with_weights
from ppt.store import digest_of

Weights = Annotated[
    Path | None,
    typer.Option(help="Where its weights lie now, if not where they lay in training."),
]


@command
def main(
    checkpoint: Annotated[
        Path, typer.Option(help="A finished run (runs/NAME) or a checkpoint's folder.")
    ],
    picture: Annotated[Path | None, typer.Argument(help="A picture of any kind.")] = None,
    text: Annotated[
        list[str] | None, typer.Argument(help='What is meant, e.g. "man in the green shirt".')
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="A CSV with columns picture (relative to it) and expression."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("predictions"),
    stage: Annotated[
        str | None, typer.Option(help="A stage of the run, e.g. ris_joint; else the chosen one.")
    ] = None,
    clip_weights: Weights = None,
    sam_weights: Weights = None,
    num_actors: Annotated[int, typer.Option(min=1, help="Actors that share a table.")] = 1,
    gpus_per_actor: Annotated[
        float, typer.Option(min=0, help="GPUs of each actor, a share too.")
    ] = 0.0,
) -> None:
    """Masks for a picture and texts, or for a CSV of them: overlay, mask and JSON."""
    if (table is None) == (picture is None) or (picture is not None and not text):
        raise ConfigError('give a picture and a text (PICTURE "TEXT"), or --table CSV')
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {str(out)!r} is a file: give a folder")
    if table is None:
        assert picture is not None and text
        predictor = Predictor.from_checkpoint(
            checkpoint, stage=stage, clip_weights=clip_weights, sam_weights=sam_weights
        )
        _one(predictor, picture, text, out)
        return
    stored = with_weights(open_checkpoint(checkpoint, stage), clip_weights, sam_weights)
    resources = Resources(
        num_actors=num_actors,
        gpus_per_actor=gpus_per_actor,
        cpus_per_reader=0,  # nothing is trained
    )
    _many(table, stored, out, resources)


def _one(predictor: Predictor, picture: Path, texts: list[str], out: Path) -> None:
    try:
        found = predictor.predict(picture, texts)
    except UnreadablePicture as error:
        raise ConfigError(f"picture: {error}") from None
    except ValueError as error:
        raise ConfigError(f"text: {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    for prediction in found:
        overlay = _write(prediction, out, f"{picture.stem}-{_slug(prediction.text)}")
        typer.echo(f"{prediction.text!r}: score {prediction.score:.3f}, {overlay}")


def _write(prediction: PicturePrediction, out: Path, name: str) -> Path:
    """<name>.png is the overlay, <name>.mask.png the mask, <name>.json the rest."""
    overlay = out / f"{name}.png"
    prediction.overlay().save(overlay)
    save_mask(prediction.mask, out / f"{name}.mask.png")
    (out / f"{name}.json").write_text(json.dumps(prediction.as_dict()))
    return overlay


def _slug(text: str) -> str:
    """The text as a part of a file's name."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:60] or digest_of(text)[:8]


def _many(table: Path, stored: StoredCheckpoint, out: Path, resources: Resources) -> None:
    result = predict_table(table, stored, out, resources)
    count = result.count
    typer.echo(
        f"{count.out:,} of {count.into:,} rows predicted, {count.quarantined:,} quarantined: "
        f"{result.predictions}, {result.masks}"
    )
    for row in result.reasons[:5]:
        line = f"  row {row['row']}, {row['picture']}: {row['reason']}"
        Console().print(line, highlight=False, markup=False, soft_wrap=True)
    if count.quarantined > 5:
        typer.echo(f"  ... and {count.quarantined - 5:,} more, in {result.quarantine}")


if __name__ == "__main__":
    run_alone(main)

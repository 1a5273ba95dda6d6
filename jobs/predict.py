"""Segment what expressions describe in the user's own pictures, with a trained stage.

ppt predict photo.jpg "man in the green shirt" --checkpoint runs/quickstart
ppt predict --table pictures.csv --checkpoint runs/quickstart --out predictions
"""

from __future__ import annotations

import itertools
import json
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from jobs.common import command, run_alone
from ppt.config import ConfigError, Resources

if TYPE_CHECKING:
    from ppt.serving.predictor import PicturePrediction, Predictor
    from ppt.serving.stored_checkpoint import StoredCheckpoint

Weights = Annotated[
    Path | None,
    typer.Option(help="The file of the weights, if it is not where it was in training."),
]

PARTS = (".png", ".mask.png", ".json")
"""How the names of a result's files end."""

MOST_BYTES = 100
"""The most bytes that the picture and the text may each have in a file's name, which has 255."""


@command
def main(
    checkpoint: Annotated[
        Path, typer.Option(help="The folder of a finished run (runs/NAME) or of a checkpoint.")
    ],
    picture: Annotated[Path | None, typer.Argument(help="The file of a picture.")] = None,
    text: Annotated[
        list[str] | None, typer.Argument(help='Expressions, e.g. "man in the green shirt".')
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="A CSV with the columns picture (relative to it) and expression."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("predictions"),
    stage: Annotated[
        str | None,
        typer.Option(help="A stage of the run, e.g. ris_joint; by default the chosen one."),
    ] = None,
    clip_weights: Weights = None,
    sam_weights: Weights = None,
    num_actors: Annotated[
        int, typer.Option(min=1, help="The number of actors that share a table.")
    ] = 1,
    gpus_per_actor: Annotated[
        float, typer.Option(min=0, help="The GPUs of each actor, e.g. 0.5.")
    ] = 0.0,
) -> None:
    """Segment what expressions describe in a picture, or in the pictures of a CSV table.

    For a picture, each expression gives an overlay, a mask and a JSON file. For a table, the
    results are a Parquet and a JSON Lines file, and a mask for each row.
    """
    if (table is None) == (picture is None) or (picture is not None and not text):
        raise ConfigError('give a picture and a text (PICTURE "TEXT"), or --table CSV')
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {str(out)!r} is a file: give a folder")
    from ppt.serving.stored_checkpoint import open_checkpoint, with_weights

    stored = with_weights(open_checkpoint(checkpoint, stage), clip_weights, sam_weights)
    if picture is not None and text:
        from ppt.images.pictures import num_bytes

        if num_bytes(picture) is None:
            told = "no such file, or no regular one"
            raise ConfigError(f"picture: cannot read {str(picture)!r}: {told}")
        from ppt.models.loaded import default_device
        from ppt.serving.predictor import Predictor

        _one(Predictor(stored, default_device()), picture, text, out)
        return
    assert table is not None
    resources = Resources(
        num_actors=num_actors,
        gpus_per_actor=gpus_per_actor,
        cpus_per_reader=0,  # nothing is trained
    )
    _many(table, stored, out, resources)


def _one(predictor: Predictor, picture: Path, texts: list[str], out: Path) -> None:
    """Predict the expressions of one picture, and write the results."""
    from ppt.images.pictures import UnreadablePicture, printable

    try:
        found = predictor.predict(picture, texts)
    except UnreadablePicture as error:
        raise ConfigError(f"picture: {error}") from None
    except ValueError as error:
        raise ConfigError(f"text: {error}") from None
    out.mkdir(parents=True, exist_ok=True)
    for prediction in found:
        overlay = _write(prediction, out, f"{_stem(picture)}-{_slug(prediction.text)}")
        typer.echo(f"{prediction.text!r}: {prediction.verdict}: {printable(overlay)}")


def _write(prediction: PicturePrediction, out: Path, name: str) -> Path:
    """Write a prediction as files, and return the path of the overlay.

    The files are <name>.png (the overlay), <name>.mask.png (the mask) and <name>.json (the rest).
    Where there is another file of such a name, the name gets a number.
    """
    from ppt.serving.predictor import save_mask

    told = json.dumps(prediction.as_dict())
    name = _unused(out, name, told)
    overlay = out / f"{name}.png"
    prediction.overlay().save(overlay)
    save_mask(prediction.mask, out / f"{name}.mask.png")
    (out / f"{name}.json").write_text(told)
    return overlay


def _unused(out: Path, name: str, told: str) -> str:
    """Return the name, with a number if it belongs to files other than those of this result."""

    def is_used(name: str) -> bool:
        record = out / f"{name}.json"
        same = record.is_file() and record.read_bytes() == told.encode()
        return not same and any((out / f"{name}{part}").exists() for part in PARTS)

    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not is_used(name))


def _stem(picture: Path) -> str:
    """Return the name of a picture without its suffix, in a form that can be part of a file name.

    What is not UTF-8 becomes "_", and a long name is cut.
    """
    stem = re.sub("[\udc80-\udcff]", "_", picture.stem)
    return stem.encode()[:MOST_BYTES].decode(errors="ignore")


def _slug(text: str) -> str:
    """Return the text in a form that can be part of a file name."""
    from ppt.store.nodes import digest_of

    slug = re.sub(r"\W+", "-", text.lower()).strip("-")[:60]
    return slug.encode()[:MOST_BYTES].decode(errors="ignore") or digest_of(text)[:8]


def _many(table: Path, stored: StoredCheckpoint, out: Path, resources: Resources) -> None:
    """Predict the rows of a table on Ray, and print how many were predicted."""
    from ppt.distributed.ray_runner import RayRunner
    from ppt.serving.predict_table import predict_table

    result = predict_table(table, stored, out, lambda store: closing(RayRunner(store, resources)))
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

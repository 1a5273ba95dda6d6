"""Segment what expressions describe in the user's own pictures.

ppt predict photo.jpg "man in the green shirt"
ppt predict photos/ https://example.org/street.jpg "man in the green shirt" "the dog"
ppt predict photo.jpg "man in the green shirt" --checkpoint runs/refcoco
ppt predict --table pictures.csv --checkpoint runs/refcoco --out predictions
"""

from __future__ import annotations

import re
import shlex
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from ppt.config import ConfigError, Resources
from ppt.config.messages import one_line
from ppt.store.disk import check_writable

from .common import ClipWeights, Local, RunStage, SamWeights, command, run_alone, say

if TYPE_CHECKING:
    from ppt.serving.asked import AskedPicture
    from ppt.serving.zero_shot import AnyModel
    from ppt.steps.runner import Runner
    from ppt.store.nodes import Store


class PredictCommand(TyperCommand):
    """The command, which says how a text is given that begins with a hyphen."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and complete the message about an option that there is not."""
        texts = [arg for arg in args if re.match(r"-[^-]|--[^=]*\s", arg)]
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # of the click that newer versions of typer have inside them
            if texts and type(error).__name__ == "NoSuchOption":
                text = shlex.quote(texts[0])
                ctx.fail(f"{error}: a text that begins with a hyphen comes last, as in -- {text}")
            raise


CLIP, SAM = "clip_vit_b_16", "sam_vit_b"
"""What segments without a checkpoint, by the names of `ppt download`."""


@command
def main(
    pictures_and_texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PICTURE]... [TEXT]...",
            help="Pictures (files, folders, patterns or URLs), and then expressions, e.g. "
            '"man in the green shirt".',
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="A CSV with the columns picture (relative to it) and expression."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("predictions"),
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a finished run (runs/NAME) or of a checkpoint. Without it, CLIP "
            "and SAM segment without training."
        ),
    ] = None,
    stage: RunStage = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help="Without --checkpoint: a CLIP by the name of a download, as NAME:TAG of open_clip "
            f"or by its file.  [default: {CLIP}]",
        ),
    ] = None,
    sam: Annotated[
        str | None,
        typer.Option(
            help="Without --checkpoint: a SAM by the name of a download or by its file.  "
            f"[default: {SAM}]"
        ),
    ] = None,
    clip_weights: ClipWeights = None,
    sam_weights: SamWeights = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Let the embedded world's model answer any picture."),
    ] = False,
    num_actors: Annotated[
        int, typer.Option(min=1, help="The number of actors that share a table.")
    ] = 1,
    gpus_per_actor: Annotated[
        float, typer.Option(min=0, help="The GPUs of each actor, e.g. 0.5.")
    ] = 0.0,
    local: Local = False,
) -> None:
    """Segment what expressions describe in pictures, or in the pictures of a CSV table.

    Each picture and expression gives an overlay, a mask and a JSON file, and all together COCO's
    results. For a table, the results are a Parquet and a JSON Lines file, a mask for each row, and
    COCO's results.

    What cannot be used is told and left out. The exit code is 1 if something was left out, and 2 if
    nothing was predicted.
    """
    if (table is None) == (not pictures_and_texts):
        raise ConfigError('give pictures and a text (PICTURE... "TEXT"), or --table CSV')
    if checkpoint is None and (stage or clip_weights or sam_weights):
        raise ConfigError(
            "--stage, --clip-weights and --sam-weights are of a checkpoint: give --checkpoint, or "
            "name a CLIP and a SAM by --clip and --sam"
        )
    if checkpoint is not None and (clip or sam):
        raise ConfigError(
            "--clip and --sam are not for a checkpoint, which knows its own: give --clip-weights "
            "and --sam-weights if their files lie elsewhere now"
        )
    from ppt.serving.asked import split_arguments

    pictures, texts = split_arguments(pictures_and_texts) if pictures_and_texts else ([], [])
    from ppt.serving.stored_checkpoint import open_checkpoint, with_weights
    from ppt.serving.zero_shot import zero_shot

    model: AnyModel
    if checkpoint is not None:
        model = with_weights(open_checkpoint(checkpoint, stage), clip_weights, sam_weights)
    else:
        model = zero_shot(clip or CLIP, sam or SAM)
    if table is None:
        faults = _pictures(pictures, texts, model, out, force=force)
        return _end(len(pictures), faults, "pictures", is_trained=checkpoint is not None)
    resources = Resources(num_actors=num_actors, gpus_per_actor=gpus_per_actor)
    asked, faults = _table(table, model, out, resources, force=force, local=local)
    _end(asked, faults, "rows", is_trained=checkpoint is not None)


def _end(asked: int, faults: list[str], what: str, *, is_trained: bool) -> None:
    """End the command: with exit code 1 if a part was left out, and 2 if nothing was predicted.

    Args:
        asked: the number of pictures or rows.
        faults: for each that was left out, the reason.
        what: what they are.
        is_trained: whether a checkpoint was given.
    """
    from ppt.serving.own_world import FOREIGN

    if any(fault.endswith(FOREIGN) for fault in faults):
        others = "leave out --checkpoint" if is_trained else "give others by --clip and --sam"
        say(
            "[yellow]note:[/] a model of the embedded world knows no photographs: for these "
            f"{others}, or give --force, with which its masks mean nothing"
        )
    if asked == len(faults) == 1:
        raise ConfigError(faults[0])
    if asked == len(faults):
        raise ConfigError(f"all {asked:,} {what} were left out")
    if faults:
        say(f"[yellow]{len(faults):,} of {asked:,} {what} were left out[/]")
        raise typer.Exit(1)


def _pictures(
    pictures: list[AskedPicture], texts: list[str], model: AnyModel, out: Path, *, force: bool
) -> list[str]:
    """Predict the expressions of some pictures, and write the results.

    Returns:
        Why each picture was left out that could not be used.
    """
    from ppt.images.pictures import UnreadablePicture, printable
    from ppt.models.loaded import default_device
    from ppt.serving.own_world import FOREIGN, check_world
    from ppt.serving.predictor import checked_texts, read_and_unread
    from ppt.serving.result_files import write_coco, write_prediction
    from ppt.serving.zero_shot import open_predictor

    try:
        texts = list(dict.fromkeys(checked_texts(texts)))
    except ValueError as error:
        raise ConfigError(f"text: {error}") from None
    predictor = open_predictor(model, default_device())
    for text in texts:
        read, unread = read_and_unread(predictor.clip, text)
        if unread:
            words = ", ".join(map(repr, unread))
            told = f"{text!r}: the model does not know, or has no room for, {words}: the mask is "
            of = "for the other words" if read else "for no word, and its score is 0"
            say(f"[yellow]note:[/] {escape(one_line(told))}{of}")
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for picture in pictures:
        try:
            image = picture.read()
            if not force:
                check_world(model, image)
            found = predictor.predict(image, texts)
        except UnreadablePicture as error:
            told = str(error)
            faults.append(printable(f"{picture.name!r}: {told}" if told == FOREIGN else told))
            if len(pictures) > 1:
                say(f"[yellow]left out:[/] {escape(faults[-1])}")
            continue
        if not rows:
            check_writable(out, "--out")
        for prediction in found:
            prediction.picture = picture.name
            overlay = write_prediction(prediction, out, picture.file_name)
            rows.append(prediction.as_dict())
            of = f"{printable(picture.name)}: " if len(pictures) > 1 else ""
            typer.echo(f"{of}{prediction.text!r}: {prediction.verdict}: {printable(overlay)}")
    if rows:
        typer.echo(f"COCO's results: {printable(write_coco(rows, out))}")
    return faults


def _table(
    table: Path,
    model: AnyModel,
    out: Path,
    resources: Resources,
    *,
    force: bool,
    local: bool,
) -> tuple[int, list[str]]:
    """Predict the rows of a table, and print how many were predicted.

    Returns:
        The number of rows, and why each was left out that could not be used.
    """
    from ppt.serving.predict_table import predict_table

    def open_runner(store: Store) -> AbstractContextManager[Runner]:
        if local:
            from ppt.steps.local_runner import LocalRunner

            return nullcontext(LocalRunner(store, resources))
        from ppt.distributed.ray_runner import RayRunner

        return closing(RayRunner(store, resources, trains=False))

    result = predict_table(table, model, out, open_runner, force=force)
    count = result.count
    typer.echo(
        f"{count.out:,} of {count.into:,} rows predicted, {count.quarantined:,} quarantined: "
        f"{result.predictions}, {result.masks}"
    )
    if result.unread:
        words = list(dict.fromkeys(word for unread in result.unread for word in unread))
        told = ", ".join(map(repr, words[:5])) + (", ..." if len(words) > 5 else "")
        say(
            f"[yellow]note:[/] {len(result.unread):,} of {count.out:,} predicted rows have words "
            f"that the model does not know, or has no room for ({escape(one_line(told))}): their "
            "masks are for the other words, or for none"
        )
    for row in result.reasons[:5]:
        line = f"  row {row['row']}, {row['picture']}: {row['reason']}"
        Console().print(line, highlight=False, markup=False, soft_wrap=True)
    if count.quarantined > 5:
        typer.echo(f"  ... and {count.quarantined - 5:,} more, in {result.quarantine}")
    return count.into, [row["reason"] for row in result.reasons]


if __name__ == "__main__":
    run_alone(main)

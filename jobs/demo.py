"""Try a trained stage on a page in the browser.

ppt demo --checkpoint runs/quickstart
ppt demo --checkpoint runs/refcoco --pictures photos
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppt.config import ConfigError, Labels
from ppt.config.load import RUN_CURRICULUM, load_run

from .common import (
    ClipWeights,
    Host,
    Port,
    RunStage,
    SamWeights,
    TrainedRun,
    check_free,
    command,
    needs,
    required_run,
    run_alone,
)

if TYPE_CHECKING:
    from ppt.serving.demo import Example

MOST_PICTURES = 60
"""How many pictures of a folder are offered."""


@command
def main(
    checkpoint: TrainedRun = None,
    stage: RunStage = None,
    clip_weights: ClipWeights = None,
    sam_weights: SamWeights = None,
    pictures: Annotated[
        Path | None, typer.Option(help="A folder with pictures to choose from.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
) -> None:
    """Try a trained stage on a page in the browser. (`make demo` trains one.)"""
    checkpoint = required_run(checkpoint)
    with needs("demo"):
        import uvicorn

        from ppt.serving.demo import demo_app, embedded_world
    from ppt.serving.interface import Limits
    from ppt.serving.predictor import Predictor

    check_free(host, port)
    predictor = Predictor.from_checkpoint(
        checkpoint, stage=stage, clip_weights=clip_weights, sam_weights=sam_weights
    )
    has_run = (checkpoint / RUN_CURRICULUM).is_file()
    labels = load_run(checkpoint.absolute()).labels if has_run else Labels()
    examples: dict[str, Example] = {}
    if pictures is not None:
        examples = pictures_of(pictures)
    elif predictor.checkpoint.model.clip.name == "toybox":
        examples = embedded_world()
    title = f"{checkpoint.absolute().name}, checkpoint {predictor.checkpoint.digest}"
    app = demo_app(predictor, labels, examples, Limits(), title)
    typer.echo(f"the page is at http://{host}:{port}/; Ctrl-C ends it")
    uvicorn.run(app, host=host, port=port, log_level="warning")


def pictures_of(folder: Path) -> dict[str, Example]:
    """Return the pictures of a folder, by their names; what cannot be read is left out.

    Raises ConfigError if there is none.
    """
    from ppt.images.pictures import UnreadablePicture, printable, read_picture
    from ppt.serving.demo import Example

    if not folder.is_dir():
        raise ConfigError(f"pictures: {str(folder)!r} is no folder")
    found: dict[str, Example] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            read_picture(path)
        except UnreadablePicture:
            continue
        found[printable(path.name)] = Example(path)
        if len(found) == MOST_PICTURES:
            break
    if not found:
        raise ConfigError(f"pictures: {str(folder)!r} has no picture that can be read")
    return found


if __name__ == "__main__":
    run_alone(main)

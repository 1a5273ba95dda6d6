"""Print what a curriculum would run: every key with its value, its origin and its meaning.

ppt config quickstart
ppt config paper/refcoco training.learning_rate=5e-4 > mine.yaml
"""

from __future__ import annotations

import typer

from ppt.config import ConfigError
from ppt.config.load import load_with_origins
from ppt.config.reference import curriculum_text, keys_of

from .common import CurriculumPath, Overrides, command, find, run_alone


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None) -> None:
    """Print every key of a curriculum with its value, as YAML that can itself be run.

    Above each key stands what it means, behind it where it was set: by a file, by an override or by
    default.
    """
    loaded, origins = load_with_origins(find(curriculum), overrides or [])
    if loaded.model.clip.name != "toybox" or loaded.model.sam.name != "toybox":
        from ppt.models.build import check_names  # it imports torch

        try:
            check_names(loaded.model)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    keys = keys_of(loaded, origins)
    typer.echo(curriculum_text(keys), nl=False)


if __name__ == "__main__":
    run_alone(main)

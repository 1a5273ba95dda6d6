"""Print what a curriculum would run: every key with its value, its origin and its meaning.

ppt config quickstart
ppt config paper/refcoco training.learning_rate=5e-4 > mine.yaml
"""

from __future__ import annotations

import typer

from ppt.config.load import load_with_origins
from ppt.config.reference import curriculum_text, keys_of

from .common import CurriculumPath, Overrides, command, find, run_alone


@command
def main(curriculum: CurriculumPath, overrides: Overrides = None) -> None:
    """Print every key of a curriculum with its value, as YAML that can itself be run.

    Above each key stands what it means, behind it where it was set: by a file, by an override or by
    default.
    """
    keys = keys_of(*load_with_origins(find(curriculum), overrides or []))
    typer.echo(curriculum_text(keys), nl=False)


if __name__ == "__main__":
    run_alone(main)

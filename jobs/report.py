"""Write a run's page and summary again.

ppt report quickstart
ppt report runs/quickstart
"""

from __future__ import annotations

from .common import (
    Local,
    Overrides,
    RunPath,
    command,
    load_trained,
    open_runner,
    run_alone,
    say_places,
)


@command
def main(run: RunPath, overrides: Overrides = None, local: Local = False) -> None:
    """Write the page and summary.json of a run whose stages are trained."""
    loaded, folder = load_trained(run, overrides)
    from ppt.curriculum.run import run_curriculum

    with open_runner(loaded, local=local, trains=False) as runner:
        say_places(run_curriculum(loaded, runner, train=False, folder=folder))


if __name__ == "__main__":
    run_alone(main)

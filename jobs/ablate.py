"""Run the rows of an ablation, such as those of the paper's Table 3.

Every row is run with every seed, and what rows have in common is made once.

ppt ablate table3
ppt ablate table3 --seeds 0,1,2 data.evaluation.seed=77
ppt ablate table3 --base paper/refcoco
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ppt.config import ConfigError, Curriculum

from .common import Local, Overrides, command, find, open_runner, out, run_alone, say, say_mlflow


@command
def main(
    rows: Annotated[
        Path,
        typer.Argument(
            metavar="ROWS", help="A folder of curricula, one for each row, or a name: table3."
        ),
    ],
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="The seeds of every row, e.g. 0,1,2.")] = "0",
    base: Annotated[
        Path | None, typer.Option(help="A curriculum that replaces the `base` of the rows.")
    ] = None,
    local: Local = False,
) -> None:
    """Run every row of an ablation, and show what each part of the method contributes."""
    numbers = _numbers(seeds)
    from ppt.experiments.ablation import load_rows, run_ablation
    from ppt.experiments.ablation_mlflow import log_ablation
    from ppt.experiments.ablation_page import table_of, write_ablation
    from ppt.store.disk import check_writable
    from ppt.store.nodes import Store
    from ppt.tracking.folder import RunFolder
    from ppt.tracking.mlflow_runs import tracked_at, tracking_uri

    rows = find(rows, folder=True)
    curricula = load_rows(rows, overrides or [], base and find(base), numbers)
    first = next(iter(curricula.values()))[0]
    folder = RunFolder(Store(first.store), rows.resolve().name)
    uri = tracking_uri(folder.path)
    with folder, _connected(first, local):
        check_writable(folder.path, "store")
        with tracked_at(uri):
            ablation = run_ablation(
                folder.name, curricula, lambda curriculum: open_runner(curriculum, local=local)
            )
            log_ablation(uri, ablation, write_ablation(ablation, Path(folder.path)))
    out().print(table_of(ablation))
    say(f"report:  {folder.path}/report.html")
    say(f"table:   {folder.path}/table.csv")
    say_mlflow(uri)


def _connected(curriculum: Curriculum, local: bool) -> AbstractContextManager[None]:
    """Connect to Ray once for all rows; with `local` do nothing."""
    if local:
        return nullcontext()
    from ppt.distributed.cluster import connected

    return connected(curriculum.resources)


def _numbers(text: str) -> list[int]:
    """Return the seeds of a list such as 0,1,2. Raises ConfigError for anything else."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers like 0,1,2, got {text!r}") from None


if __name__ == "__main__":
    run_alone(main)

"""The paper's Table 3: every row with every seed, sharing all that rows have in common.

ppt ablate curricula/ablations
ppt ablate curricula/ablations --seeds 0,1,2 data.evaluation.seed=77
ppt ablate curricula/ablations --base curricula/paper/refcoco.yaml
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from jobs.common import Overrides, command, mlflow_ui, out, run_alone, say
from ppt.config import ConfigError
from ppt.pipeline.ablation import load_rows, run_ablation
from ppt.pipeline.folder import RunFolder
from ppt.pipeline.report.ablation import table_of, write_ablation
from ppt.pipeline.tracking import log_ablation, tracking_uri
from ppt.store import Store


@command
def main(
    rows: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Curricula, one a row: curricula/ablations.")
    ],
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Every row is run with each, e.g. 0,1,2.")] = "0",
    base: Annotated[
        Path | None, typer.Option(help="A curriculum in place of the rows' own `base`.")
    ] = None,
) -> None:
    """Run every row of an ablation, and say what each part of the method is worth."""
    curricula = load_rows(rows, overrides or [], base, _numbers(seeds))
    store = Store(next(iter(curricula.values()))[0].store)
    folder = RunFolder(store, rows.resolve().name)
    uri = tracking_uri(folder.path)
    with folder:
        Path(folder.path).mkdir(parents=True, exist_ok=True)
        with _tracked_at(uri):
            ablation = run_ablation(folder.name, curricula)
            log_ablation(uri, ablation, write_ablation(ablation, Path(folder.path)))
    out().print(table_of(ablation))
    say(f"report:  {folder.path}/report.html")
    say(f"table:   {folder.path}/table.csv")
    say(f"MLflow:  {mlflow_ui(uri)}")


@contextmanager
def _tracked_at(uri: str) -> Iterator[None]:
    """One tracking server for all rows, whose runs are there to be compared."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]


def _numbers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers like 0,1,2, got {text!r}") from None


if __name__ == "__main__":
    run_alone(main)

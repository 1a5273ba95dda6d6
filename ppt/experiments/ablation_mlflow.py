"""The MLflow run of a whole ablation, which is the parent of the runs of its rows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

from ppt.experiments.ablation import Ablation
from ppt.experiments.table3 import METRICS
from ppt.tracking.mlflow_runs import STATE_FILE, experiment, mlflow_name, needed, quiet_client


def log_ablation(uri: str, ablation: Ablation, files: Iterable[Path]) -> None:
    """Log an ablation as an MLflow run of its own, with the runs of its rows as children.

    The run gets each line's mean metrics, the numbers of stage-epochs, and `files` as artifacts.
    """
    with needed(uri):
        _log(uri, ablation, files)


def _log(uri: str, ablation: Ablation, files: Iterable[Path]) -> None:
    from mlflow.entities import Metric

    client = quiet_client(uri)
    tags = {"ppt.kind": "ablation", "ppt.ablation": ablation.name}
    ours = experiment(client, uri)
    found = client.search_runs([ours], f"tags.`ppt.ablation` = '{ablation.name}'")
    run_id = (
        found[0] if found else client.create_run(ours, run_name=ablation.name, tags=tags)
    ).info.run_id
    values: dict[str, float] = {
        "stage_epochs": ablation.stage_epochs,
        "stage_epochs_without_sharing": ablation.stage_epochs_unshared,
        **{f"{line.name}/{m}": line.mean(m) for line in ablation.lines for m in METRICS},
    }
    now = int(time.time() * 1000)
    client.log_batch(run_id, [Metric(mlflow_name(k), float(v), now, 0) for k, v in values.items()])
    measured = [measured for line in ablation.lines for measured in line.by_seed.values()]
    for folder in {m.record.folder for m in measured}:  # a set: the run of row 1 fills two lines
        state = json.loads((Path(folder) / STATE_FILE).read_text())
        client.set_tag(state["run_id"], "mlflow.parentRunId", run_id)
    for path in files:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, "FINISHED")

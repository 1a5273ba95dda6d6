"""An exported model as a model of MLflow: what logs it, and what loads it.

MLflow keeps the exported folder as it is and loads it by the name of this module (`loader_module`),
so no object of ours is pickled. Where the model is served, ppt must be installed.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ppt
from ppt.config import ConfigError
from ppt.images.pictures import check_picture, encode_picture
from ppt.serving.own_world import check_world
from ppt.serving.predictor import Predictor
from ppt.store.checkpoint_files import MANIFEST
from ppt.store.checksums import unseal
from ppt.store.given import SUMMARY
from ppt.toybox import world
from ppt.tracking.mlflow_runs import (
    flatten,
    in_a_line,
    logged_run,
    move_artifacts,
    needed,
    quiet_client,
    tracked_at,
)

if TYPE_CHECKING:
    import pandas as pd

NAME = "model"
"""The name of the model within its MLflow run."""


def log_model(folder: Path, run: Path, register: str | None = None) -> str:
    """Log an exported model into the MLflow run of its run, with signature and input example.

    The model gets the metrics that its stage has in the MLflow run.

    Args:
        folder: the exported model.
        run: the folder of the run from which it was exported.
        register: the name under which the model is registered, if it is.

    Returns:
        The model's URI: `models:/<id>`, or `models:/<name>/<version>` if it is registered.

    Raises:
        ConfigError: if the run's folder tells no MLflow run, if MLflow fails, or if it does not
            take the name.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import Model, infer_signature

    uri, run_id = logged_run(run)
    manifest = unseal((folder / MANIFEST).read_bytes())
    stages = [stage["name"] for stage in unseal((run / SUMMARY).read_bytes())["stages"]]
    scene = world.scene(seed=0, index=0)
    example = pd.DataFrame(
        {"picture": [encode_picture(scene.image)], "expression": [scene.expressions[0].text]}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # integers, which MLflow says may be missing
        answer = _load_pyfunc(str(folder)).predict(example)
        signature = infer_signature(example, answer, params={"force": False})
    with needed(uri), tracked_at(uri):
        move_artifacts(uri)
        client = quiet_client(uri)
        logged = client.create_logged_model(
            client.get_run(run_id).info.experiment_id,
            name=NAME,
            source_run_id=run_id,
            tags={"ppt.checkpoint": manifest["digest"], "ppt.stage": manifest["stage"]},
            params={name: str(value) for name, value in flatten(manifest["model"]).items()},
        )
        info = Model.log(
            None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=logged.model_id,
            step=stages.index(manifest["stage"]) + 1,
            loader_module=__name__,
            data_path=str(folder),
            input_example=example,
            signature=signature,
            pip_requirements=[f"ppt-ris=={ppt.__version__}"],
        )
        return register_model(info.model_uri, register, uri) if register else info.model_uri


def register_model(model: str, name: str, server: str) -> str:
    """Register a logged model, and return its URI: `models:/<name>/<version>`.

    Raises ConfigError if the server does not take the name; servers have rules of their own.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode

    try:
        version = mlflow.register_model(model, name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        raise ConfigError(
            f"--register: MLflow at {server} does not take {name!r} as the name of a model "
            f"({in_a_line(error)}): give another name"
        ) from error
    return f"models:/{name}/{version.version}"


class PyfuncPredictor:
    """A `Predictor` for rows with the columns `picture`, the bytes of a file, and `expression`."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, rows: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict]:
        """Return a prediction for each row: the JSON of `ppt predict` without the picture's path.

        Consecutive rows with the same picture are predicted together. With the parameter `force`
        the embedded world's model answers any picture, see `own_world`.

        Raises MlflowException, which a server answers with status 400, if a row cannot be used.
        """
        from mlflow.exceptions import MlflowException

        found: list[dict[str, Any]] = []
        pictures = rows["picture"]
        for _, group in rows.groupby((pictures != pictures.shift()).cumsum(), sort=False):
            try:
                image = check_picture(group["picture"].iloc[0])
                if not (params or {}).get("force"):
                    check_world(self.predictor.checkpoint, image)
                predictions = self.predictor.predict(image, group["expression"].tolist())
            except ValueError as error:  # UnreadablePicture is one
                row = len(found) + 1
                raise MlflowException.invalid_parameter_value(f"row {row}: {error}") from error
            found += [prediction.as_dict() for prediction in predictions]
        return [{key: row[key] for key in row if key != "picture"} for row in found]


def _load_pyfunc(path: str) -> PyfuncPredictor:
    """Load the model; MLflow calls this function by its name, with the exported folder."""
    return PyfuncPredictor(Predictor.from_pretrained(path))

"""The commands, by name. `ppt submit` runs any of them on a cluster."""

from __future__ import annotations

from collections.abc import Callable

import typer

from . import (
    ablate,
    benchmark,
    config,
    demo,
    doctor,
    download,
    encode,
    evaluate,
    export,
    gc,
    label,
    predict,
    prepare,
    report,
    select,
    serve,
    show,
    sweep,
    train,
    verify,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "prepare": prepare.main,
    "encode": encode.main,
    "label": label.main,
    "train": train.main,
    "sweep": sweep.main,
    "select": select.main,
    "evaluate": evaluate.main,
    "report": report.main,
    "ablate": ablate.main,
    "predict": predict.main,
    "demo": demo.main,
    "serve": serve.main,
    "download": download.main,
    "export": export.main,
    "config": config.main,
    "doctor": doctor.main,
    "verify": verify.main,
    "benchmark": benchmark.main,
    "show": show.main,
    "gc": gc.main,
}
"""The function of each command, in the order in which `ppt --help` lists them."""


def add_commands(app: typer.Typer) -> typer.Typer:
    """Add every command to an application, and return the application."""
    for name, main in COMMANDS.items():
        kind = predict.PredictCommand if main is predict.main else None
        app.command(name=name, cls=kind)(main)
    return app

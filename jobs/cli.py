"""`ppt`: all commands under one name."""

from __future__ import annotations

import typer

from jobs import (
    ablate,
    doctor,
    encode,
    evaluate,
    label,
    predict,
    prepare,
    report,
    select,
    submit,
    sweep,
    train,
)

app = typer.Typer(
    name="ppt",
    help=(
        "Weakly supervised referring image segmentation by point prompting, on Ray.\n\n"
        "Most commands take a curriculum (a YAML file) and KEY=VALUE overrides, and do what is not "
        "done yet: running one again goes on where it stopped. `ppt train` does everything; "
        "`ppt predict` uses what it trained, `ppt doctor` says what is missing, `ppt submit` runs "
        "a command on a cluster. "
        "RAY_ADDRESS names the cluster (default: this machine), MLFLOW_TRACKING_URI the tracking "
        "server (default: an SQLite file in the run's folder)."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for job in (
    prepare,
    encode,
    label,
    train,
    sweep,
    select,
    evaluate,
    report,
    ablate,
    predict,
    doctor,
):
    app.command(name=job.__name__.rsplit(".", 1)[-1])(job.main)
app.command(name="submit", context_settings=submit.SETTINGS)(submit.main)

if __name__ == "__main__":
    app(prog_name="ppt")

"""Jobs on a Ray cluster that runs already: send the working directory, follow the log, stop.

Only Ray's own JobSubmissionClient is used, so it is the same on one machine (`ray start --head`),
under `ray up`, on Kubernetes and through a tunnel.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ppt.config import ConfigError

LOCAL = "http://127.0.0.1:8265"
"""Where the dashboard of a Ray on this machine listens unless it was told otherwise."""

LEFT_BEHIND = (
    # What a job does not need, as in .gitignore; Ray leaves .git and .venv behind by itself.
    *("/data/", "/runs/", "/predictions/", "/mlruns/", "/mlflow.db", "/build/"),
    *("/tests/", "/docs/", ".pytest_cache/", ".mypy_cache/", ".ruff_cache/", ".hypothesis/"),
    *("*.egg-info/", "*.pyc"),
)

AGENT_SECONDS = 60
"""How long a head that has only just started may take until it can run a job."""

NO_AGENT = (
    "see dashboard_agent.log on the head; where another Ray there has its port, start it with "
    "--dashboard-agent-listen-port and --dashboard-agent-grpc-port of its own"
)

PASSED_ON = ("MLFLOW_TRACKING_URI",)
"""Variables that a job gets from here. No secrets: the dashboard shows a job's environment."""


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the cluster whose dashboard is at `address`, or a ConfigError.

    Without an address RAY_API_SERVER_ADDRESS and RAY_ADDRESS count, as for Ray's own tools. A
    cluster that asks for a token is given the one that Ray would use here; no other gets to see it.
    """
    if address and "://" not in address:
        address = f"http://{address}"
    chosen = (
        address
        or os.environ.get("RAY_API_SERVER_ADDRESS")
        or os.environ.get("RAY_ADDRESS")
        or LOCAL
    )
    os.environ["RAY_API_SERVER_ADDRESS"] = chosen  # Ray lets RAY_ADDRESS override the argument
    for name in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env").setLevel(logging.ERROR)
    try:
        try:
            return JobSubmissionClient(chosen)
        except AuthenticationError:
            token = _token()
            if token is None:
                raise
            return JobSubmissionClient(chosen, headers={"Authorization": f"Bearer {token}"})
    except AuthenticationError as error:
        raise ConfigError(
            f"the cluster at {chosen} asks for a token ({_first_line(error)}): give it by "
            f"RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        ) from None
    except (OSError, RayError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no cluster answers at {chosen} ({_first_line(error)}): give --address "
            f"http://HEAD:8265, or start one here with `ray start --head`"
        ) from None


def submit(client: JobSubmissionClient, command: Sequence[str], folder: Path) -> str:
    """Send `folder` and start `python -m jobs.cli COMMAND` in it; returns the job's id."""
    variables = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    begun = time.monotonic()
    while True:
        try:
            return client.submit_job(
                entrypoint=shlex.join(["python", "-m", "jobs.cli", *command]),
                runtime_env={
                    "working_dir": str(folder),
                    "excludes": list(LEFT_BEHIND),
                    "env_vars": variables,
                },
            )
        except (RuntimeError, ValueError) as error:
            message = f"the cluster did not take the job: {_first_line(error)}"
            if "No available agent" not in str(error):
                raise ConfigError(message) from None
            if time.monotonic() - begun > AGENT_SECONDS:
                raise ConfigError(f"{message}: {NO_AGENT}") from None
            time.sleep(1)


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> int:
    """Write the log as it comes until the job ends; returns its exit code.

    A job that a signal ended gives 128 + the signal, as a shell does; one that never started 1.
    """
    _details(client, job)
    try:
        asyncio.run(_write_log(client, job, write))
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"lost the log of {job} ({_first_line(error)}); the job goes on: "
            f"follow it again with --follow {job}"
        ) from None
    details = _ended(client, job)
    code = details.driver_exit_code
    if code is None and details.status == JobStatus.STOPPED:
        code = -signal.SIGTERM
    if code is None:
        write(f"{job} {details.status}: {details.message}\n")
        return 1
    return code if code >= 0 else 128 - code


def stop(client: JobSubmissionClient, job: str) -> bool:
    """Stop a job and wait until it has ended; False if it had ended before."""
    _details(client, job)
    stopped = client.stop_job(job)
    _ended(client, job)
    return stopped


async def _write_log(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job):
        write(lines)


def _details(client: JobSubmissionClient, job: str) -> JobDetails:
    try:
        return client.get_job_info(job)
    except RuntimeError:
        raise ConfigError(f"no job {job!r} on this cluster: `ray job list` names them") from None


def _ended(client: JobSubmissionClient, job: str) -> JobDetails:
    """The details of a job that is about to end."""
    while not (details := _details(client, job)).status.is_terminal():
        time.sleep(0.2)
    return details


def _token() -> str | None:
    """The token that Ray would take here: the same three places in the same order."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]

"""Jobs on a running Ray cluster: send the working directory, follow the log, stop the job.

Only Ray's own JobSubmissionClient is used. It works alike on one machine (`ray start --head`),
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
from ppt.distributed.ray_private import RUNTIME_ENV_LOGGER

LOCAL = "http://127.0.0.1:8265"
"""The default address of the dashboard of a Ray cluster on this machine."""

LEFT_BEHIND = (
    # These are as in .gitignore. Ray leaves out .git and .venv by itself.
    *("/data/", "/runs/", "/predictions/", "/mlruns/", "/mlflow.db", "/build/"),
    *("/tests/", "/docs/", ".pytest_cache/", ".mypy_cache/", ".ruff_cache/", ".hypothesis/"),
    *("*.egg-info/", "*.pyc"),
)
"""The files that are not sent to the cluster."""

AGENT_SECONDS = 60
"""The time that a head node may take after its start until it can run a job."""

NO_AGENT = (
    "see dashboard_agent.log on the head; where another Ray there has its port, start it with "
    "--dashboard-agent-listen-port and --dashboard-agent-grpc-port of its own"
)
"""The advice that is given if a head node does not become ready to run a job."""

PASSED_ON = ("MLFLOW_TRACKING_URI",)
"""The environment variables that a job gets from this machine.

They must not be secrets, because the dashboard shows a job's environment.
"""


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client of the cluster whose dashboard is at `address`.

    Without an address, RAY_API_SERVER_ADDRESS and RAY_ADDRESS are used, as by Ray's own tools. A
    token is sent only if the cluster requires one; it is the token that Ray itself would use.

    Raises ConfigError if no cluster answers, or if it asks for a token that is missing or wrong.
    """
    if address and "://" not in address:
        address = f"http://{address}"
    chosen = (
        address
        or os.environ.get("RAY_API_SERVER_ADDRESS")
        or os.environ.get("RAY_ADDRESS")
        or LOCAL
    )
    os.environ["RAY_API_SERVER_ADDRESS"] = chosen  # else RAY_ADDRESS would override the argument
    for name in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    logging.getLogger(RUNTIME_ENV_LOGGER).setLevel(logging.ERROR)
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
    """Send `folder` to the cluster, and start `python -m ppt.jobs.cli COMMAND` there as a job.

    Returns the job's id. Raises ConfigError if the cluster does not accept the job.
    """
    variables = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    begun = time.monotonic()
    while True:
        try:
            return client.submit_job(
                entrypoint=shlex.join(["python", "-m", "ppt.jobs.cli", *command]),
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
    """Write a job's log as it arrives until the job ends, and return the job's exit code.

    A job that was ended by a signal gives 128 plus the signal's number, as in a shell. A job that
    never started gives 1. Raises ConfigError if there is no such job or if its log is lost.
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
    """Stop a job, and wait until it has ended. Returns False if it had ended before.

    Raises ConfigError if there is no such job.
    """
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
    """Wait until a job has ended, and return its details."""
    while not (details := _details(client, job)).status.is_terminal():
        time.sleep(0.2)
    return details


def _token() -> str | None:
    """Return the token that Ray would use here, from the same three places in the same order."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]

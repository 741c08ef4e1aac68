"""The cluster's dashboard, which takes jobs over HTTP: its address, the user's token, errors that help."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from tpdist.launch.auth import user_token
from tpdist.launch.packing import JobError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_LIMIT_S = 5.0
OLDEST_RAY = (2, 59)

for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # packages and sockets: nothing that a user can use


def connect(address: str | None = None) -> JobSubmissionClient:
    """A client of the dashboard at `address`. Raises JobError within seconds where that is none that can be used."""
    address = address_of(address)
    headers = token_header()
    try:
        answer = requests.get(f"{address}/api/version", headers=headers, timeout=ANSWER_LIMIT_S)
    except (requests.RequestException, ValueError) as error:  # a host name that cannot be one is a ValueError
        raise JobError(
            f"nothing answers at --address {address} within {ANSWER_LIMIT_S:.0f} s; start a cluster with "
            "`ray start --head`, or open a tunnel to its dashboard with `ray dashboard CLUSTER.yaml`"
        ) from error
    _check_answer(address, answer, bool(headers))
    with _without_ray_address():
        return JobSubmissionClient(address, headers=headers)


def address_of(address: str | None) -> str:
    """The dashboard's URL: as given, else $RAY_API_SERVER_ADDRESS, else Ray's default."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if address == "auto":
        raise JobError(f"--address auto: is for tpdist train; must be the dashboard's, such as {DEFAULT_ADDRESS}")
    if "://" not in address:
        address = f"http://{address}"
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise JobError(f"--address {address}: must be the dashboard's, such as {DEFAULT_ADDRESS}")
    return address.rstrip("/")


def token_header() -> dict[str, str]:
    """The user's token as the dashboard wants it; nothing where there is none.

    Sent by ourselves: Ray does so only if RAY_AUTH_MODE was set before its first import in this process.
    """
    token = user_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _check_answer(address: str, answer: requests.Response, token_sent: bool) -> None:
    if answer.status_code in (401, 403):
        what = "refuses this token" if token_sent else "asks for a token"
        raise JobError(
            f"the cluster at --address {address} {what}; set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, "
            "or write it to ~/.ray/auth_token (mode 0600)"
        )
    try:
        there = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"what answers at --address {address} is no Ray dashboard") from error
    version = tuple(int(part) for part in there.split(".")[:2] if part.isdigit())
    here = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if version < OLDEST_RAY or version != here:
        raise JobError(
            f"the cluster at --address {address} runs Ray {there}, and here is {ray.__version__}; install the same "
            f"Ray, {OLDEST_RAY[0]}.{OLDEST_RAY[1]} or newer, on both"
        )


@contextmanager
def translated(client: JobSubmissionClient, job: str | None = None) -> Iterator[None]:
    """What goes wrong between the client and the cluster, as JobError."""
    try:
        yield
    except requests.RequestException as error:
        raise JobError(
            f"the cluster at {client.get_address()} has stopped answering: {type(error).__name__}"
        ) from error
    except (RuntimeError, AuthenticationError) as error:
        if job and "does not exist" in str(error):
            raise JobError(
                f"{job}: the cluster at {client.get_address()} has no such job; see `tpdist jobs`"
            ) from error
        lines = str(error).strip(".\n").splitlines()
        said = lines[-1 if "Traceback" in lines[0] else 0].rstrip(".")
        if "No available agent" in said:
            said += (
                "; where another Ray runs on the head's machine, its port 52365 is taken: start the head with "
                "--dashboard-agent-listen-port and another one"
            )
        raise JobError(f"the cluster at {client.get_address()} refused: {said}") from error


@contextmanager
def _without_ray_address() -> Iterator[None]:
    """Ray lets these variables win over an address that is given; the user's --address must."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)

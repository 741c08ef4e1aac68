"""Runs as Ray jobs: hand a training run to a cluster over HTTP, follow its log, fetch its result.

The working directory travels to the head node as a zip; the run and its store stay on the cluster, under
`$TPDIST_SHARED` (default `~/tpdist`), which on several nodes must be a directory that all of them see. The job prints
one line `TPDIST_RESULT {json}` at its end, which carries `result.json` home.
"""

import asyncio
import json
import logging
import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from tpdist.config import load_config
from tpdist.data import default_store
from tpdist.errors import Interrupted, TpdistError
from tpdist.launch.auth import user_token
from tpdist.launch.packing import PACK_LIMIT_MIB, JobError, pack_list, write_package

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_LIMIT_S = 5.0
LOOK_EVERY_S = 1.0
RESULT_MARK = "TPDIST_RESULT "
# what Ray's job manager and the job's command write for others than the user
NOT_SHOWN = re.compile(rf"{RESULT_MARK}|Running entrypoint for job |[-0-9]+ [0-9:,]+\tINFO job_manager\.py:")
OLDEST_RAY = (2, 59)
# for a stopped job to save everything; Ray's own 3 s would cut it off
STOP_LIMIT_S = 120
COMMAND_KEY = "tpdist_command"
ERROR_LINES = 20

for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # packages and sockets: nothing that a user can use


class JobFailedError(TpdistError):
    """The job ran and ended badly; its own error comes first."""

    exit_code = 1


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job. run: its directory, on the cluster. result: `result.json`, once it has succeeded."""

    job: str
    status: str
    run: str
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class JobLine:
    """A job of the cluster, as `tpdist jobs` shows it."""

    job: str
    status: str
    started: datetime | None
    seconds: float | None
    command: str


def submit(
    config_path: str | Path,
    overrides: Sequence[str] = (),
    address: str | None = None,
    working_dir: str | Path = ".",
    follow: bool = True,
    fetch_to: str | Path | None = None,
    say: Callable[[str], None] = print,
    *,
    run_dir: str | None = None,
    limit_mib: float = PACK_LIMIT_MIB,
    command: str = "tpdist train",
    dry_run: bool = False,
) -> JobOutcome:
    """Train `config_path` on the cluster whose dashboard is at `address`; see the module.

    follow: pass the job's log to `say` until it ends. fetch_to: a directory here for `result.json`. run_dir: the run's
    directory on the cluster; default `$TPDIST_SHARED/runs/<job>`. command: what is called in place of `tpdist train`.
    dry_run: say what would be sent and called, and ask nobody.

    Raises ConfigError before anything is sent, JobError where the cluster cannot take the job, JobFailedError where it
    ended badly, Interrupted where the user stopped following.
    """
    config = load_config(config_path, overrides)
    root = Path(working_dir).resolve()
    files = pack_list(root, limit_mib)
    try:
        inside = Path(config_path).resolve().relative_to(root)
    except ValueError:
        inside = None
    if inside is None or inside not in files:
        raise JobError(f"{config_path}: not among the files of {root} that travel to the cluster; move it there")
    job = f"{config.run.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    run = run_dir or f"$TPDIST_SHARED/runs/{job}"
    sets, set_by_hand = list(overrides), ["--set", *overrides] if overrides else []
    if config.data.store is None:
        sets.append(f"data.store=$TPDIST_SHARED/{default_store(config.data).as_posix()}")
    entrypoint = entrypoint_of(inside.as_posix(), sets, run, command)

    if dry_run:
        size = sum((root / name).stat().st_size for name in files)
        say(f"would send {len(files)} files of {root}, {size / 2**20:.1f} MiB, to {address_of(address)}")
        say(f"would call there: {entrypoint}")
        return JobOutcome(job, "DRY_RUN", run)
    client = connect(address)
    with _translated(client), tempfile.TemporaryDirectory() as directory:
        package = Path(directory) / "working_dir.zip"
        write_package(root, files, package)
        say(f"sending {len(files)} files, {package.stat().st_size / 2**20:.1f} MiB")
        client.submit_job(
            entrypoint=entrypoint,
            submission_id=job,
            runtime_env={"working_dir": str(package), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_LIMIT_S)}},
            metadata={COMMAND_KEY: shlex.join([*shlex.split(command), inside.as_posix(), *set_by_hand])},
        )
    say(f"job {job} at {client.get_address()}")
    if not follow:
        return JobOutcome(job, JobStatus.PENDING.value, run)
    try:
        log = asyncio.run(_follow(client, job, say))
    except KeyboardInterrupt:
        raise Interrupted(f"job {job} goes on without you; `tpdist stop {job}` ends it") from None
    with _translated(client):
        details = client.get_job_info(job)
    result = find_result(log)
    outcome = JobOutcome(job, details.status.value, result["run"] if result else run, result)
    if details.status == JobStatus.STOPPED:
        say(f"job {job} was stopped; its run can be continued from {run}")
    elif details.status != JobStatus.SUCCEEDED:
        raise JobFailedError(failure(log, details))
    if outcome.result is not None and fetch_to is not None:
        target = Path(fetch_to) / "result.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(outcome.result, indent=1) + "\n", encoding="utf-8")
        say(f"result: {target}")
    return outcome


def jobs(address: str | None = None) -> list[JobLine]:
    """The submitted jobs of the cluster, the latest first."""
    client = connect(address)
    with _translated(client):
        found = [details for details in client.list_jobs() if details.submission_id]
    found.sort(key=lambda details: details.start_time or 0, reverse=True)
    return [_line(details) for details in found]


def stop(job: str, address: str | None = None) -> bool:
    """Ask a job to save everything and end. False if it had ended already. Raises JobError if there is none."""
    client = connect(address)
    with _translated(client, job):
        return client.stop_job(job)


def connect(address: str | None = None) -> JobSubmissionClient:
    """A client of the dashboard at `address`. Raises JobError within seconds where that is none that can be used."""
    address = address_of(address)
    headers = token_header()
    try:
        answer = requests.get(f"{address}/api/version", headers=headers, timeout=ANSWER_LIMIT_S)
    except requests.RequestException as error:
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
    if "://" not in address:
        address = f"http://{address}"
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise JobError(f"--address {address}: must be the dashboard's, such as {DEFAULT_ADDRESS}")
    return address.rstrip("/")


def token_header() -> dict[str, str]:
    """The user's token as the dashboard wants it; nothing where there is none.

    Sent by ourselves: Ray does so only if RAY_AUTH_MODE was set before its first import in this process.
    """
    token = user_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def entrypoint_of(config: str, overrides: Sequence[str], run_dir: str, command: str = "tpdist train") -> str:
    """The job as one line of `sh`. A leading `$TPDIST_SHARED` in `run_dir` or a value is the cluster's to fill in."""
    sets = " ".join(["--set", *map(_quote, overrides)]) if overrides else ""
    # Ray ends a job by SIGTERM to every process: the shell waits for the training, which saves everything first
    return (
        'trap : TERM; export TPDIST_SHARED="${TPDIST_SHARED:-$HOME/tpdist}"; mkdir -p "$TPDIST_SHARED/runs"; '
        f'run={_quote(run_dir)}; {command} {shlex.quote(config)} --address auto --run-dir "$run" {sets}; code=$?; '
        f'[ -f "$run/result.json" ] && printf "\\n{RESULT_MARK}%s\\n" "$(tr -d "\\n" < "$run/result.json")"; '
        '[ -d "$run" ] && echo "run: $run"; exit $code'
    )


def find_result(log: str) -> dict[str, Any] | None:
    """What the job's last result line holds; None where there is none, or not a run's."""
    lines = [line.removeprefix(RESULT_MARK) for line in log.splitlines() if line.startswith(RESULT_MARK)]
    try:
        result = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return result if isinstance(result, dict) and "run" in result else None


def failure(log: str, details: JobDetails) -> str:
    """What to tell of a job that failed: its own error first."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    lines = [line for line in lines if not NOT_SHOWN.match(line) and not line.startswith("run: ")]
    starts = [i for i, line in enumerate(lines) if line.startswith(("tpdist: ", "Traceback (most recent call last)"))]
    told = lines[starts[-1] :] if starts else lines
    code = details.driver_exit_code
    ended = f"job {details.submission_id} failed" + (f" with exit code {code}" if code is not None else "")
    if code == 127:
        ended += ": tpdist is not installed on the cluster's head, or not on the PATH of its `ray start`"
    elif code is None and details.message:
        ended += f": {details.message.strip()}"
    return "\n".join([*told[-ERROR_LINES:], ended])


async def _follow(client: JobSubmissionClient, job: str, say: Callable[[str], None]) -> str:
    """The job's whole log, passed to `say` line by line while it grows; a broken connection is made again."""
    log, said = "", 0
    while True:
        seen = 0
        try:
            # a new connection begins at the log's start
            async for text in client.tail_job_logs(job):
                new = text[max(0, len(log) - seen) :]
                seen += len(text)
                log += new
                said = _say_lines(log, said, say)
        except (RuntimeError, OSError, aiohttp.ClientError):
            pass
        with _translated(client, job):
            if client.get_job_status(job).is_terminal():
                break
        await asyncio.sleep(LOOK_EVERY_S)
    with _translated(client, job):
        log = client.get_job_logs(job)  # whole: the connection may have closed before the last lines
    _say_lines(log + "\n", said, say)
    return log


def _say_lines(log: str, said: int, say: Callable[[str], None]) -> int:
    """Pass on the whole lines behind `said`; how far that is."""
    end = log.rfind("\n") + 1
    for line in log[said:end].splitlines():
        if line and not NOT_SHOWN.match(line):
            say(line)
    return max(said, end)


def _line(details: JobDetails) -> JobLine:
    start, end = details.start_time, details.end_time
    started = datetime.fromtimestamp(start / 1000) if start else None
    command = (details.metadata or {}).get(COMMAND_KEY, details.entrypoint)
    seconds = (end / 1000 if end else datetime.now().timestamp()) - start / 1000 if start else None
    return JobLine(details.submission_id or "", details.status.value, started, seconds, command)


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
def _translated(client: JobSubmissionClient, job: str | None = None) -> Iterator[None]:
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
        first = str(error).splitlines()[0]
        raise JobError(f"the cluster at {client.get_address()} refused: {first}") from error


@contextmanager
def _without_ray_address() -> Iterator[None]:
    """Ray lets these variables win over an address that is given; the user's --address must."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _quote(value: str) -> str:
    """For `sh`; only a `$TPDIST_SHARED` that begins the value, or what follows its first `=`, is filled in there."""
    head, equals, tail = value.partition("=")
    if not value.startswith("$TPDIST_SHARED") and equals and tail.startswith("$TPDIST_SHARED"):
        return shlex.quote(f"{head}=") + _quote(tail)
    if value.startswith("$TPDIST_SHARED"):
        return '"$TPDIST_SHARED"' + shlex.quote(value.removeprefix("$TPDIST_SHARED"))
    return shlex.quote(value)

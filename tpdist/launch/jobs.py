"""Runs as Ray jobs: hand a training run to a cluster over HTTP, follow its log, fetch its result.

The working directory travels to the head node as a zip; the run and its store stay on the cluster, under
`$TPDIST_SHARED` (default `~/tpdist`), which on several nodes must be a directory that all of them see. The job prints
one line `TPDIST_RESULT {json}` at its end, which carries `result.json` home.
"""

import asyncio
import json
import re
import secrets
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from tpdist.config import load_config, with_place
from tpdist.config.workers import check_devices
from tpdist.errors import ConfigError, Interrupted, TpdistError, key_of
from tpdist.launch.dashboard import address_of, connect, translated
from tpdist.launch.entrypoint import SHARED, entrypoint_of, failure, find_result
from tpdist.launch.following import follow_log
from tpdist.launch.packing import (
    JobError,
    below_shared,
    needed_there,
    overrides_there,
    pack_list,
    paths_there,
    write_package,
)

# for a stopped job to save everything; Ray's own 3 s would cut it off. The files of cluster/ and docker/ have the same
# number for jobs that other programs send
STOP_LIMIT_S = 120
COMMAND_KEY, RUN_KEY = "tpdist_command", "tpdist_run"
TIME_OF_A_JOB = re.compile(r"-\d{8}-\d{6}-[0-9a-f]{4}$")


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
    config_path: str | Path | None,
    overrides: Sequence[str] = (),
    address: str | None = None,
    working_dir: str | Path = ".",
    follow: bool = True,
    fetch_to: str | Path | None = None,
    say: Callable[[str], None] = print,
    *,
    run_dir: str | None = None,
    resume: str | None = None,
    command: str = "tpdist train",
    dry_run: bool = False,
) -> JobOutcome:
    """Train `config_path` on the cluster whose dashboard is at `address`; see the module.

    follow: pass the job's log to `say` until it ends. fetch_to: a directory here, for <job>/result.json then.
    run_dir: the run's directory on the cluster; default `$TPDIST_SHARED/runs/<job>`. resume: in place of a
    configuration, a job whose run goes on, or its run's directory on the cluster. command: what is called in place of
    `tpdist train`. dry_run: say what would be sent and called, and ask nobody.

    Raises ConfigError before anything is sent, JobError where the cluster cannot take the job, JobFailedError where it
    ended badly, Interrupted where the user stopped following.
    """
    if bool(config_path) == bool(resume):
        raise JobError("submit: give a configuration file (before --set), or --resume JOB, and not both")
    if resume and run_dir is not None:
        raise JobError("submit: --resume goes on in the run's own directory; leave --run-dir out")
    root, set_by_hand = Path(working_dir).resolve(), ["--set", *overrides] if overrides else []
    if resume:
        # a directory may be called "run #2"; the job's name is part of URLs
        name, files = re.sub(r"[^\w.-]+", "-", TIME_OF_A_JOB.sub("", Path(resume).name)), pack_list(root, say)
        work, arguments = _Submission(None, name, overrides_there(overrides), files), ["--resume", resume]
    else:
        work = _new(Path(str(config_path)), overrides, root, say)
        files, arguments = work.files, [str(work.config)]
    job = f"{work.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    client = None if dry_run else connect(address)
    run = _run_of(resume, client) if resume else below_shared(run_dir or f"runs/{job}")
    entrypoint = entrypoint_of(work.config, work.sets, run, command)
    needed = f"must be on the cluster: {', '.join(work.needed)}"

    if client is None:
        size = sum((root / name).stat().st_size for name in files)
        say(f"would send {len(files)} files of {root}, {size / 2**20:.1f} MiB, to {address_of(address)}")
        say(f"would call there: {entrypoint}")
        if work.needed:
            say(needed)
        return JobOutcome(job, "DRY_RUN", run)
    home = None if fetch_to is None or not follow else Path(fetch_to) / job
    with _made(home):
        with translated(client), tempfile.TemporaryDirectory() as directory:
            package = Path(directory) / "working_dir.zip"
            write_package(root, files, package)
            say(f"sending {len(files)} files, {package.stat().st_size / 2**20:.1f} MiB")
            if work.needed:
                say(needed)
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=job,
                runtime_env={"working_dir": str(package), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_LIMIT_S)}},
                metadata={COMMAND_KEY: shlex.join([*shlex.split(command), *arguments, *set_by_hand]), RUN_KEY: run},
            )
        say(f"job {job} at {client.get_address()}")
        if not follow:
            return JobOutcome(job, JobStatus.PENDING.value, run)
        try:
            log = asyncio.run(follow_log(client, job, say))
        except KeyboardInterrupt:
            ends = f"tpdist stop {job} --address {client.get_address()}"
            raise Interrupted(f"job {job} goes on without you; `{ends}` ends it") from None
        with translated(client):
            details = client.get_job_info(job)
        result = find_result(log)
        outcome = JobOutcome(job, details.status.value, result["run"] if result else run, result)
        if details.status == JobStatus.STOPPED:
            say(f"job {job} was stopped. Continue with: {go_on(job, address)}")
        elif details.status != JobStatus.SUCCEEDED:
            raise JobFailedError(failure(log, details))
        if outcome.result is not None and home is not None:
            target = home / "result.json"
            try:
                target.write_text(json.dumps(outcome.result, indent=1) + "\n", encoding="utf-8")
            except OSError as error:
                raise JobError(
                    f"{target}: cannot be written: {error.strerror}; on the cluster it is in {outcome.run}"
                ) from error
            say(f"result: {target}")
        return outcome


@dataclass(frozen=True)
class _Submission:
    """What a job does. config: its file, as it lies there; None for a run that goes on. needed: what it finds there."""

    config: str | None
    name: str
    sets: list[str]
    files: list[Path]
    needed: list[str] = field(default_factory=list)


def _new(config_path: Path, overrides: Sequence[str], root: Path, say: Callable[[str], None]) -> _Submission:
    """A new run. say: see `pack_list`. Raises ConfigError, or JobError where the file does not travel."""
    config, files = load_config(config_path, overrides), pack_list(root, say)
    try:
        check_devices(config)
        there = paths_there(config, root, files)
    except ConfigError as error:
        raise with_place(error, config) from error
    try:
        inside = config_path.resolve().relative_to(root)
    except ValueError:
        inside = None
    if inside is None or inside not in files:
        raise JobError(f"{config_path}: not among the files of {root} that travel to the cluster; move it there")
    sets = [one for one in overrides if key_of(one) not in there]
    sets += [f"{key}={path}" for key, path in there.items()]
    return _Submission(inside.as_posix(), config.run.name, sets, files, needed_there(config, there))


def _run_of(resume: str, client: JobSubmissionClient | None) -> str:
    """The directory there of a run that goes on. client: who knows a job's; None where nobody is asked."""
    if "/" in resume:
        return below_shared(resume)
    known = {}
    if client is not None:
        with suppress(JobError), translated(client, resume):  # a cluster that was started anew knows no old jobs
            known = client.get_job_info(resume).metadata or {}
    return known.get(RUN_KEY, f"{SHARED}/runs/{resume}")


def go_on(job: str, address: str | None) -> str:
    """The command by which a job's run goes on."""
    return shlex.join(["tpdist", "submit", "--resume", job, *(["--address", address] if address else [])])


def jobs(address: str | None = None) -> list[JobLine]:
    """The submitted jobs of the cluster, the latest first."""
    client = connect(address)
    with translated(client):
        found = [details for details in client.list_jobs() if details.submission_id]
    found.sort(key=lambda details: details.start_time or 0, reverse=True)
    return [_line(details) for details in found]


def stop(job: str, address: str | None = None) -> bool:
    """Ask a job to save everything and end. False if it had ended already. Raises JobError if there is none."""
    client = connect(address)
    with translated(client, job):
        return client.stop_job(job)


@contextmanager
def _made(directory: Path | None) -> Iterator[None]:
    """A directory for what comes home: made before the job is sent, while an error costs nothing; gone if none came."""
    if directory is None:
        yield
        return
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise JobError(f"--fetch-to {directory}: cannot be made: {error.strerror}; give another directory") from error
    try:
        yield
    finally:
        with suppress(OSError):  # there is something in it
            directory.rmdir()


def _line(details: JobDetails) -> JobLine:
    start, end = details.start_time, details.end_time
    started = datetime.fromtimestamp(start / 1000) if start else None
    command = (details.metadata or {}).get(COMMAND_KEY, details.entrypoint)
    seconds = (end / 1000 if end else datetime.now().timestamp()) - start / 1000 if start else None
    return JobLine(details.submission_id or "", details.status.value, started, seconds, command)

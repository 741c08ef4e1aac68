"""A job's log, followed while it grows."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import aiohttp
import requests
from ray.job_submission import JobSubmissionClient

from tpdist.launch.dashboard import translated
from tpdist.launch.entrypoint import NOT_SHOWN
from tpdist.launch.packing import JobError

LOOK_EVERY_S = 1.0
PATIENCE_S = 60.0  # with a cluster that does not answer


async def follow_log(client: JobSubmissionClient, job: str, say: Callable[[str], None]) -> str:
    """The job's whole log, passed to `say` line by line while it grows; a broken connection is made again."""
    log, said = "", 0
    while True:
        seen = 0
        with suppress(RuntimeError, OSError, aiohttp.ClientError):
            # a new connection begins at the log's start
            async for text in client.tail_job_logs(job):
                new = text[max(0, len(log) - seen) :]
                seen += len(text)
                log += new
                said = _say_lines(log, said, say)
        if await _has_ended(client, job):
            break
        await asyncio.sleep(LOOK_EVERY_S)
    with translated(client, job):
        log = client.get_job_logs(job)  # whole: the connection may have closed before the last lines
    _say_lines(log + "\n", said, say)
    return log


async def _has_ended(client: JobSubmissionClient, job: str) -> bool:
    """A cluster that does not answer is asked again for a while: the job goes on while a tunnel is down.

    Raises JobError where it answers no more, and for an answer that is none.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with translated(client, job):
                return client.get_job_status(job).is_terminal()
        except JobError as error:
            if not isinstance(error.__cause__, requests.ConnectionError | requests.Timeout):
                raise
            if time.monotonic() > deadline:
                ends = f"tpdist stop {job} --address {client.get_address()}"
                raise JobError(f"{error}; job {job} may go on without you: `{ends}` ends it") from error
        await asyncio.sleep(LOOK_EVERY_S)


def _say_lines(log: str, said: int, say: Callable[[str], None]) -> int:
    """Pass on the whole lines behind `said`; how far that is."""
    end = log.rfind("\n") + 1
    for line in log[said:end].splitlines():
        if line and not NOT_SHOWN.match(line):
            say(line)
    return max(said, end)

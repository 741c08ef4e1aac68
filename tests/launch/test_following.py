"""A job's log is followed over a connection that breaks."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import requests
from ray.job_submission import JobStatus

from tpdist.launch import following
from tpdist.launch.dashboard import translated
from tpdist.launch.packing import JobError


class Client:
    """Its stream breaks after a line; asked for the status it fails as often as `silent` says."""

    def __init__(self, silent: int):
        self.silent = silent

    def get_address(self) -> str:
        return "http://127.0.0.1:8265"

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "epoch 1\n"
        raise aiohttp.ClientConnectionError("the tunnel is gone")

    def get_job_status(self, job: str) -> JobStatus:
        self.silent -= 1
        if self.silent >= 0:
            raise requests.ConnectionError("refused")
        return JobStatus.SUCCEEDED

    def get_job_logs(self, job: str) -> str:
        return "epoch 1\nepoch 2\n"


def test_a_tunnel_that_is_down_for_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "LOOK_EVERY_S", 0.01)
    said: list[str] = []
    asyncio.run(following.follow_log(Client(silent=5), "a-job", said.append))  # type: ignore[arg-type]
    assert said == ["epoch 1", "epoch 2"]


FOLLOWED = """
import asyncio
from test_following import Client
from tpdist.cli import main
from tpdist.launch import following, jobs

def submit(*_, say, **__):
    open("log", "w").write(asyncio.run(following.follow_log(Client(silent=0), "a-job", say)))
    return jobs.JobOutcome("a-job", "SUCCEEDED", "run")

jobs.submit = submit
raise SystemExit(main(["submit", "a.yaml"]))
"""


def test_a_job_is_followed_to_its_end_though_nobody_reads(tmp_path: Path):
    """`tpdist submit a.yaml | head -1`: its result is to be fetched, and its failure told."""
    script = f"""cd "{tmp_path}"; {{ sleep 1; "{sys.executable}" -c '{FOLLOWED}'; }} | :; exit "${{PIPESTATUS[0]}}" """
    more = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ, **more})
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "log").read_text() == "epoch 1\nepoch 2\n"


def test_a_cluster_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(following, "PATIENCE_S", 0.1)
    with pytest.raises(
        JobError, match=r"answering: ConnectionError; job a-job may .*: `tpdist stop a-job --address http://127"
    ):
        asyncio.run(following.follow_log(Client(silent=1_000_000), "a-job", print))  # type: ignore[arg-type]


def test_of_a_traceback_of_the_clusters_the_last_line_is_told():
    said = "Request failed with status code 500: Traceback (most recent call last):\n  File ...\nTimeoutError: slow\n."
    client = Client(silent=0)
    with pytest.raises(JobError, match=r"refused: TimeoutError: slow$"), translated(client):  # type: ignore[arg-type]
        raise RuntimeError(said)


def test_a_port_that_another_ray_holds_is_named():
    said = "Request failed with status code 500: No available agent to submit job, please try again later.."
    with (
        pytest.raises(JobError, match=r"later; where another Ray .* --dashboard-agent-listen-port"),
        translated(
            Client(silent=0)  # type: ignore[arg-type]
        ),
    ):
        raise RuntimeError(said)

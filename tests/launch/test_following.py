"""A job's log is followed over a connection that breaks."""

import asyncio
from collections.abc import AsyncIterator

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

"""What `ray start`, as the README says it, opens to whom: every server but that of the metrics asks for the token."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import grpc
import psutil
import pytest
import ray
from free_ports import free_ports
from intruder import DRIVER, NO_TOKENS, SUBMIT, Heard, attempt

from tpdist.launch.cluster import ClusterError, connected

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


class Head(NamedTuple):
    """Ports of 127.0.0.1, and the home of the user who started it."""

    gcs: int
    dashboard: int
    agent: int
    client: int
    node_manager: int
    object_manager: int
    home: Path
    process: psutil.Process

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.gcs}"

    @property
    def jobs(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"


@pytest.fixture(scope="module")
def started() -> Iterator[Head]:
    generate, start = (
        next(line for line in README.splitlines() if pattern in line)
        for pattern in ("ray get-auth-token --generate", "ray start --head --num-cpus")
    )
    first = free_ports(8)
    options = ("", "dashboard-", "dashboard-agent-listen-", "ray-client-server-", "node-manager-", "object-manager-")
    ports = [f"--{option}port={first + number}" for number, option in enumerate(options)]
    ports += ["--object-store-memory=100000000"]
    with tempfile.TemporaryDirectory(prefix="tp", dir="/tmp") as directory:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": directory,
            "RAY_TMPDIR": directory,
            "OMP_NUM_THREADS": "1",
        }
        subprocess.run(["bash", "-c", generate], env=environment, check=True, capture_output=True)
        log = Path(directory) / "log"
        words = shlex.split(start)
        environment |= dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        with log.open("wb") as output:
            head = subprocess.Popen([*words, "--block", *ports], env=environment, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 120
            right = {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": directory}
            while "IN 1" not in attempt(DRIVER, f"127.0.0.1:{first}", Path(directory), **right):
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(1)
            yield Head(*range(first, first + len(options)), Path(directory), psutil.Process(head.pid))
        finally:
            head.terminate()
            head.wait(timeout=60)


@pytest.mark.parametrize("token", NO_TOKENS, ids=["none", "wrong"])
def test_nobody_gets_into_what_the_readme_starts(started: Head, home: Path, token: Mapping[str, str]) -> None:
    for script, address in ((DRIVER, started.address), (SUBMIT, started.jobs)):
        seen = attempt(script, address, home, **token)
        assert "IN " not in seen
        assert re.search("(?i)auth|token", seen), seen
    # it says no more than that it could not connect
    seen = attempt(DRIVER, f"ray://127.0.0.1:{started.client}", home, **token)
    assert "IN " not in seen
    assert "ConnectionError" in seen


def test_every_grpc_server_asks_for_the_token(started: Head) -> None:
    """Those of the table in the README's section on security, each by a call that the token opens."""
    workers = [process for process in started.process.children(recursive=True) if "ray::IDLE" in process.name()]
    listening = [entry for worker in workers for entry in worker.net_connections(kind="inet") if entry.laddr]
    calls = {
        started.gcs: "NodeInfoGcsService/GetAllNodeInfo",
        started.node_manager: "NodeManagerService/GetSystemConfig",
        started.object_manager: "ObjectManagerService/Pull",
        started.client: "RayletDriver/ClusterInfo",
    } | {
        entry.laddr.port: "CoreWorkerService/GetCoreWorkerStats"
        for entry in listening
        if entry.status == psutil.CONN_LISTEN
    }
    assert len(calls) > 4, "no idle worker listens"
    token = (started.home / ".ray" / "auth_token").read_text().strip()
    for port, method in calls.items():
        refused = [_call(port, method, given) for given in (None, "f" * 64)]
        assert refused == ["UNAUTHENTICATED"] * 2, method
        assert _call(port, method, token) != "UNAUTHENTICATED", method


def _call(port: int, method: str, token: str | None) -> str:
    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return error.code().name  # type: ignore[attr-defined]
        return "OK"


def test_the_agent_submits_nothing_without_the_token(started: Head) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{started.agent}/api/job_agent/jobs/", b'{"entrypoint": "true"}', method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 401


def test_who_has_the_readmes_token_gets_in(started: Head) -> None:
    assert (started.home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    for address in (started.address, f"ray://127.0.0.1:{started.client}"):
        assert "IN 1" in attempt(DRIVER, address, started.home, RAY_AUTH_MODE="token")
    deadline = time.monotonic() + 60
    # the node's agent, which runs jobs, comes up last
    while "IN raysubmit_" not in (said := attempt(SUBMIT, started.jobs, started.home, RAY_AUTH_MODE="token")):
        assert "No available agent" in said, said
        assert time.monotonic() < deadline


def test_what_a_run_says_of_the_token_it_lacks(started: Head) -> None:
    heard = Heard()
    wants = rf"^the cluster at --address {started.address} wants its token: "
    with pytest.raises(ClusterError, match=wants) as caught, connected(started.address, 1, heard):
        raise AssertionError("connected")
    assert caught.value.exit_code == 2
    assert heard.said[0].startswith(f"warning: connecting to {started.address} without a token")


def test_a_run_with_the_token_connects(started: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setenv("HOME", str(started.home))
    with connected(started.address, 1, heard):
        assert ray.cluster_resources()["CPU"] == 4
    assert heard.said == []

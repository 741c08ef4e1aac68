"""Jobs on a real job server, with stand-ins for `tpdist train`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_ports
from stand_ins import RECORD, stand_in

from tpdist.launch import auth, jobs

NOT_OURS = (*auth.VARIABLES, "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
HEAD = Path(__file__).parents[2] / "docker" / "head.sh"

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Path]]:
    """The address of a head node with a token, started by docker/head.sh, and the file with its token."""
    first = free_ports(8)
    with tempfile.TemporaryDirectory(prefix="tp", dir="/tmp") as directory:
        token = Path(directory) / "token"
        token.touch(mode=0o600)
        token.write_text("a" * 64)
        environment = {key: value for key, value in os.environ.items() if key not in NOT_OURS} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_TMPDIR": directory,
            "HOME": directory,
            "OMP_NUM_THREADS": "1",
            "TPDIST_NODE_IP": "127.0.0.1",
            "TPDIST_GCS_PORT": str(first),
            "TPDIST_DASHBOARD_PORT": str(first + 1),
            "TPDIST_NODE_PORTS": str(first + 2),
            "TPDIST_CPUS": "2",
            "TPDIST_TOKEN_FILE": str(token),
            "TPDIST_SHARED": f"{directory}/shared",
        }
        log = Path(directory) / "head.log"
        with log.open("wb") as output:
            head = subprocess.Popen(
                [str(HEAD)], cwd=HEAD.parents[1], env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            address = f"http://127.0.0.1:{first + 1}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
                _wait_for_agent(address, head, log)
            yield address, token
        finally:
            # `ray start --block` ends what it started
            head.terminate()
            head.wait(timeout=60)


def _wait_for_agent(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            jobs.jobs(address)
            return
        except jobs.JobError:
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(errors="replace")) from None
            time.sleep(1)


TRAINING = (
    """
print("arguments", sys.argv[1:], flush=True)
for epoch in range(3):
    print("epoch", epoch, flush=True)
    time.sleep(0.2)
assert pathlib.Path(sys.argv[1]).read_text() == "run: {name: small}\\n"
"""
    + RECORD
)


@pytest.mark.slow
def test_a_job_runs_is_followed_and_brings_its_result(
    server: tuple[str, Path], project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(server[1]))
    said: list[str] = []
    outcome = jobs.submit(
        project / "small.yaml", ["run.epochs=3"], server[0], project, fetch_to=tmp_path / "fetched", say=said.append,
        command=stand_in(tmp_path, TRAINING),
    )  # fmt: skip
    assert outcome.status == "SUCCEEDED"
    assert [line for line in said if line.startswith("epoch")] == ["epoch 0", "epoch 1", "epoch 2"]
    assert not any("TPDIST_RESULT" in line for line in said)
    assert outcome.result is not None
    assert "run.epochs=3" in outcome.result["args"]
    assert outcome.run.endswith(f"/shared/runs/{outcome.job}")
    assert json.loads((tmp_path / "fetched" / outcome.job / "result.json").read_text()) == outcome.result
    listed = {line.job: line for line in jobs.jobs(server[0])}[outcome.job]
    assert listed.status == "SUCCEEDED"
    assert listed.command.endswith("small.yaml --set run.epochs=3")
    assert listed.seconds is not None
    assert jobs.stop(outcome.job, server[0]) is False


@pytest.mark.slow
def test_a_job_that_fails(
    server: tuple[str, Path], project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(server[1]))
    command = stand_in(tmp_path, "print('epoch 0'); raise ValueError('the shape is wrong')\n")
    with pytest.raises(jobs.JobFailedError) as caught:
        jobs.submit(project / "small.yaml", [], server[0], project, say=lambda _: None, command=command)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-2] == "ValueError: the shape is wrong"
    assert lines[-1].endswith("failed with exit code 1")
    assert caught.value.exit_code == 1


@pytest.mark.slow
def test_a_job_that_is_stopped_saves_first(
    server: tuple[str, Path], project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(server[1]))
    # longer than the 3 s that Ray gives by itself
    body = "def end(*_):\n time.sleep(5)\n print('saved', flush=True)\n sys.exit(130)\n"
    body += "signal.signal(signal.SIGTERM, end)\nprint('ready', flush=True)\ntime.sleep(120)\n"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line == "ready":
            job = next(text.split()[1] for text in said if text.startswith("job "))
            assert jobs.stop(job, server[0])

    outcome = jobs.submit(project / "small.yaml", [], server[0], project, say=say, command=stand_in(tmp_path, body))
    assert outcome.status == "STOPPED"
    assert "saved" in said
    job = first = outcome.job
    assert said[-1] == f"job {job} was stopped. Continue with: {jobs.go_on(job, server[0])}"
    for resumed in (1, 2):  # the second goes on from the first that went on, where its run is
        outcome = jobs.submit(
            None, ["run.epochs=9"], server[0], project, resume=job, say=said.append, command=stand_in(tmp_path, RECORD)
        )
        assert outcome.result is not None, resumed
        assert outcome.result["args"][-2:] == ["--set", "run.epochs=9"]
        assert outcome.run.endswith(f"/runs/{first}")
        assert outcome.job.startswith("small-2")
        assert outcome.job.count("-") == job.count("-")
        job = outcome.job


@pytest.mark.slow
def test_without_the_token_nobody_gets_in(server: tuple[str, Path], project: Path) -> None:
    with pytest.raises(jobs.JobError, match="asks for a token"):
        jobs.submit(project / "small.yaml", [], server[0], project)
    with pytest.raises(jobs.JobError, match="asks for a token"):
        jobs.jobs(server[0])


@pytest.mark.slow
def test_an_unknown_job(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(server[1]))
    with pytest.raises(jobs.JobError, match="has no such job"):
        jobs.stop("nothing", server[0])

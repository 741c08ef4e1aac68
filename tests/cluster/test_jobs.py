"""`tpdist.launch.jobs`: what is refused before anything is sent, and a real job server."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from free_ports import free_ports
from ray.job_submission import JobType
from stand_ins import RECORD, stand_in

from tpdist.errors import ConfigError
from tpdist.launch import auth, jobs

NOT_OURS = (*auth.VARIABLES, "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
HEAD = Path(__file__).parents[2] / "docker" / "head.sh"

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize("where", ["runs/a/config.yaml", "../outside.yaml"])
def test_a_config_that_would_not_travel_is_refused(project: Path, where: str) -> None:
    (project.parent / "outside.yaml").write_text("run: {name: small}\n")
    with pytest.raises(jobs.JobError, match="not among the files"):
        jobs.submit(project / where, working_dir=project, address="http://127.0.0.1:1")


def test_a_bad_config_is_refused_before_anything_is_sent(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.epochs"):
        jobs.submit(project / "small.yaml", ["run.epochs=none"], "http://127.0.0.1:1", project)


def dry_run(project: Path, text: str | None, overrides: tuple[str, ...] = (), **options: str) -> list[str]:
    said: list[str] = []
    if text is not None:
        (project / "small.yaml").write_text(text)
    config = None if text is None else project / "small.yaml"
    jobs.submit(config, overrides, "http://head:1", project, say=said.append, dry_run=True, **options)
    return said


def test_a_relative_store_lies_in_the_shared_directory(project: Path) -> None:
    ptb = "data: {recipe: ptb, store: stores/ptb}\n"
    _, call, needed = dry_run(project, ptb)
    assert '--set data.store="$TPDIST_SHARED"/stores/ptb;' in call
    mine = ("data.store=/nfs/ptb", "run.checkpoint_to=ck", "model.init_from=$TPDIST_SHARED/a.safetensors")
    _, call, needed = dry_run(project, ptb, mine)
    sets = 'data.store=/nfs/ptb run.checkpoint_to="$TPDIST_SHARED"/ck model.init_from="$TPDIST_SHARED"/a.safetensors;'
    assert f"--set {sets}" in call
    assert needed == "must be on the cluster: /nfs/ptb, $TPDIST_SHARED/a.safetensors"
    _, call, needed = dry_run(project, ptb)
    assert needed == "must be on the cluster: $TPDIST_SHARED/stores/ptb"
    _, call, needed = dry_run(project, ptb, ("data.store=/nfs/ptb", "data.source=/nfs/texts"))
    assert "--set data.store=/nfs/ptb data.source=/nfs/texts;" in call
    assert needed == "must be on the cluster: /nfs/texts"  # from which the store is made
    _, call = dry_run(project, "run: {name: small}\n")  # its text comes with Python
    assert '--set data.store="$TPDIST_SHARED"/stores/python-docs-word;' in call


def test_a_file_that_would_not_travel_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"small.yaml:1: model.init_from: runs/a/model.safetensors: not among the"):
        dry_run(project, "model: {init_from: runs/a/model.safetensors}\n")
    (project / "texts").mkdir()
    (project / "texts" / "ptb.train.txt").write_text("a\n")
    assert len(dry_run(project, "data: {recipe: ptb, source: ./texts}\n")) == 2


def test_what_a_file_says_of_the_shared_directory_is_filled_in_there(project: Path) -> None:
    text = "data: {recipe: text, source: $TPDIST_SHARED/a.txt}\n"
    _, call, needed = dry_run(project, text, run_dir="mine")
    assert 'data.source="$TPDIST_SHARED"/a.txt;' in call
    assert 'run="$TPDIST_SHARED"/mine;' in call
    assert needed == "must be on the cluster: $TPDIST_SHARED/a.txt"


def test_a_jobs_run_goes_on(project: Path) -> None:
    job = "small-20260101-120000-ab12"
    _, call = dry_run(project, None, ("run.epochs=9",), resume=job)
    assert f'run="$TPDIST_SHARED"/runs/{job}; tpdist train --resume "$run" --address auto --set run.epochs=9' in call
    changes = ("data.store=stores/x", "run.checkpoint_to=null")
    _, call = dry_run(project, None, changes, resume="/nfs/mine")
    assert "run=/nfs/mine; " in call
    assert '--set data.store="$TPDIST_SHARED"/stores/x run.checkpoint_to=null;' in call
    _, call = dry_run(project, None, resume="runs/mine")
    assert 'run="$TPDIST_SHARED"/runs/mine;' in call
    named = jobs.submit(None, (), None, project, resume="/nfs/run #2?", dry_run=True, say=lambda _: None)
    assert (named.run, named.job[:7]) == ("/nfs/run #2?", "run-2--")  # it is part of URLs
    with pytest.raises(jobs.JobError, match="give a configuration file"):
        dry_run(project, None, resume="")
    with pytest.raises(jobs.JobError, match="and not both"):
        dry_run(project, "run: {name: small}\n", resume=job)
    with pytest.raises(jobs.JobError, match="leave --run-dir out"):
        dry_run(project, None, resume=job, run_dir="/nfs/a")


def test_auto_is_no_dashboard(project: Path) -> None:
    with pytest.raises(jobs.JobError, match="--address auto: is for tpdist train"):
        jobs.submit(project / "small.yaml", [], "auto", project, dry_run=True)


class Refusing:
    """In place of a cluster's job server."""

    def submit_job(self, **_: object) -> None:
        raise RuntimeError("no room")

    def get_address(self) -> str:
        return "http://head:1"


class Failing(Refusing):
    """Its jobs end badly, and say nothing."""

    status = jobs.JobStatus.FAILED

    def submit_job(self, **_: object) -> None: ...

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for line in ():
            yield line

    def get_job_status(self, job: str) -> jobs.JobStatus:
        return self.status

    def get_job_logs(self, job: str) -> str:
        return ""

    def get_job_info(self, job: str) -> jobs.JobDetails:
        return jobs.JobDetails(type=JobType.SUBMISSION, submission_id=job, status=self.status, entrypoint="x")


class Stopping(Failing):
    """Its jobs are stopped."""

    status = jobs.JobStatus.STOPPED


@pytest.mark.parametrize(
    ("cluster", "error"), [(Refusing, jobs.JobError), (Failing, jobs.JobFailedError), (Stopping, None)]
)
def test_a_job_without_a_result_leaves_no_directory(
    cluster: type[Refusing], error: type[Exception] | None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "connect", lambda _: cluster())
    fetched = project / "fetched"
    with pytest.raises(error) if error else nullcontext():
        jobs.submit(project / "small.yaml", [], None, project, fetch_to=fetched, say=lambda _: None)
    assert list(fetched.iterdir()) == []


# A real job server


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

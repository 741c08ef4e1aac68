"""`tpdist.launch.jobs`: what is refused before anything is sent, what would be called, what a job leaves that fails."""

import errno
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from ray.job_submission import JobType

from tpdist.errors import ConfigError, Interrupted
from tpdist.launch import jobs

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
    sets = 'data.store=/nfs/ptb model.init_from="$TPDIST_SHARED"/a.safetensors run.checkpoint_to="$TPDIST_SHARED"/ck;'
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
    _, call = dry_run(project, None, ("data.store=~/x", "run.checkpoint_to=~"), resume="/nfs/mine")
    assert f"--set data.store={Path.home()}/x 'run.checkpoint_to=~';" in call  # `~` alone is null
    _, call = dry_run(project, None, ("data.source=~/a.txt", "data.train=b.txt"), resume="/nfs/mine")
    assert f"--set data.source={Path.home()}/a.txt data.train=b.txt;" in call
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


class Left(Failing):
    """The user types Ctrl-C while its job is followed."""

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        raise KeyboardInterrupt
        yield ""


def test_a_job_that_is_left_alone_is_said_to_go_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "connect", lambda _: Left())
    with pytest.raises(Interrupted, match=r"job (\S+) goes on without you; `tpdist stop \1 --address http://head:1`"):
        jobs.submit(project / "small.yaml", [], "http://head:1", project, say=lambda _: None)


class Stopping(Failing):
    """Its jobs are stopped."""

    status = jobs.JobStatus.STOPPED


class Done(Failing):
    """Its jobs succeed."""

    status = jobs.JobStatus.SUCCEEDED

    def get_job_logs(self, job: str) -> str:
        return 'TPDIST_RESULT {"run": "/nfs/run"}\n'


def test_a_result_that_cannot_be_written_here_is_said_to_be_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jobs, "connect", lambda _: Done())
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        jobs.JobError, match=r"result\.json: cannot be written: No space left on device; .* in /nfs/run$"
    ):
        jobs.submit(project / "small.yaml", [], None, project, fetch_to=project / "fetched", say=lambda _: None)


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

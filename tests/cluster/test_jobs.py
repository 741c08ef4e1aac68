"""`tpdist.launch.jobs`: what travels, what is said when something is wrong, and a real job server."""

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from free_ports import free_ports
from ray.job_submission import JobDetails, JobStatus, JobType

from tpdist.errors import ConfigError
from tpdist.launch import jobs, packing
from tpdist.launch.auth import TokenError

CONFIG = "run: {name: small}\n"
CONFIGS = Path(__file__).parents[2] / "configs"
TOKENS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working directory with a config, code, a run, a store and an environment."""
    root = tmp_path / "project"
    for name in ("small.yaml", "cells/own.py", "runs/a/config.yaml", "stores/x/train.arrow", ".venv/lib.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(CONFIG)
    return root


class FakeDashboard(http.server.BaseHTTPRequestHandler):
    """Answers /api/version as told, and keeps the headers it got."""

    status = 200
    body = json.dumps({"ray_version": ray.__version__})
    got: dict[str, str]

    def do_GET(self) -> None:
        type(self).got = dict(self.headers)
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body.encode())

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[FakeDashboard]]]:
    handler = type("Handler", (FakeDashboard,), {"got": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


# What travels


def test_runs_stores_and_environments_stay_at_home(project: Path) -> None:
    assert packing.pack_list(project) == [Path("cells/own.py"), Path("small.yaml")]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_what_git_ignores_stays_at_home(project: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(project)], check=True)
    (project / ".gitignore").write_text("*.big\n")
    (project / "data.big").write_text("x")
    (project / "new.txt").write_text("not added yet")
    (project / "gone.txt").write_text("added, then removed")
    subprocess.run(["git", "-C", str(project), "add", "gone.txt"], check=True)
    (project / "gone.txt").unlink()
    names = [path.as_posix() for path in packing.pack_list(project)]
    assert names == [".gitignore", "cells/own.py", "new.txt", "small.yaml"]


def test_too_much_is_refused_with_the_largest_files(project: Path) -> None:
    (project / "corpus.txt").write_bytes(bytes(3 * 2**20))
    with pytest.raises(jobs.JobError, match=r"3\.0 MiB would travel .* 2 are allowed; the largest: corpus\.txt 3\.0"):
        packing.pack_list(project, limit_mib=2)


def test_equal_files_give_equal_packages(project: Path, tmp_path: Path) -> None:
    files = packing.pack_list(project)
    packing.write_package(project, files, tmp_path / "a.zip")
    os.utime(project / "small.yaml", (1, 1))
    packing.write_package(project, files, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["cells/own.py", "small.yaml"]


@pytest.mark.parametrize("where", ["runs/a/config.yaml", "../outside.yaml"])
def test_a_config_that_would_not_travel_is_refused(project: Path, where: str) -> None:
    (project.parent / "outside.yaml").write_text(CONFIG)
    with pytest.raises(jobs.JobError, match="not among the files"):
        jobs.submit(project / where, working_dir=project, address="http://127.0.0.1:1")


def test_a_bad_config_is_refused_before_anything_is_sent(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.epochs"):
        jobs.submit(project / "small.yaml", ["run.epochs=none"], "http://127.0.0.1:1", project)


# The job's command


def run_entrypoint(line: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **env}
    return subprocess.run(["sh", "-c", line], env=environment, cwd=home, capture_output=True, text=True)


def stand_in(directory: Path, body: str) -> str:
    """A script in place of `tpdist train`; it finds its arguments in sys.argv and the run directory in `run`."""
    file = directory / "stand_in.py"
    head = "import json, pathlib, signal, sys, time\n"
    head += "run = pathlib.Path(sys.argv[sys.argv.index('--run-dir') + 1])\n"
    file.write_text(head + body)
    return f"{sys.executable} {file}"


RECORD = """
run.mkdir(parents=True)
(run / "result.json").write_text(json.dumps({"run": str(run), "args": sys.argv[1:]}, indent=1))
"""


def test_the_command_reaches_the_training_unharmed(tmp_path: Path) -> None:
    command = stand_in(tmp_path, RECORD)
    overrides = ["run.name=a b'c\"$HOME;`id`", "data.store=$TPDIST_SHARED/stores/it's"]
    line = jobs.entrypoint_of("my configs/a.yaml", overrides, "$TPDIST_SHARED/runs/one", command)
    done = run_entrypoint(line, tmp_path / "home")
    result = jobs.find_result(done.stdout)
    shared = tmp_path / "home" / "tpdist"
    assert done.returncode == 0, done.stderr
    assert result is not None
    assert result["args"] == [
        "my configs/a.yaml", "--address", "auto", "--run-dir", f"{shared}/runs/one",
        "--set", overrides[0], f"data.store={shared}/stores/it's",
    ]  # fmt: skip


def test_the_cluster_says_where_runs_go(tmp_path: Path) -> None:
    line = jobs.entrypoint_of("a.yaml", [], "$TPDIST_SHARED/runs/one", stand_in(tmp_path, RECORD))
    done = run_entrypoint(line, tmp_path / "home", TPDIST_SHARED=str(tmp_path / "shared"))
    result = jobs.find_result(done.stdout)
    assert result is not None
    assert result["run"] == str(tmp_path / "shared" / "runs" / "one")
    assert "--set" not in result["args"]


def test_the_exit_code_is_the_trainings(tmp_path: Path) -> None:
    line = jobs.entrypoint_of("a.yaml", [], "runs/one", stand_in(tmp_path, "print('tpdist: no'); sys.exit(3)\n"))
    done = run_entrypoint(line, tmp_path / "home")
    assert done.returncode == 3
    assert jobs.find_result(done.stdout) is None


def test_sigterm_to_all_lets_the_training_finish(tmp_path: Path) -> None:
    body = "def end(*_):\n time.sleep(0.5)\n print('saved', flush=True)\n sys.exit(130)\n"
    body += "signal.signal(signal.SIGTERM, end)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    line = jobs.entrypoint_of("a.yaml", [], str(tmp_path / "run"), stand_in(tmp_path, body))
    process = subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert "saved" in process.communicate(timeout=20)[0]
    assert process.returncode == 130


@pytest.mark.parametrize("log", ["", "TPDIST_RESULT {", "TPDIST_RESULT 3", "x TPDIST_RESULT {}"])
def test_a_log_without_a_result(log: str) -> None:
    assert jobs.find_result(log) is None


def details(**fields: object) -> JobDetails:
    known = {"type": JobType.SUBMISSION, "submission_id": "one", "status": JobStatus.FAILED, "entrypoint": "x"}
    return JobDetails(**{**known, **fields})  # pyright: ignore[reportArgumentType]


def test_a_failed_jobs_own_error_comes_first() -> None:
    log = "2026-01-01 05:12:07,843\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    log += "epoch 1\ntpdist: a worker failed\nValueError: its own\n\nrun: /x\n"
    text = jobs.failure(log, details(driver_exit_code=1))
    assert text == "tpdist: a worker failed\nValueError: its own\njob one failed with exit code 1"


def test_a_job_without_tpdist_says_so() -> None:
    assert "tpdist is not installed" in jobs.failure("sh: tpdist: not found", details(driver_exit_code=127))


def test_a_job_that_never_began_tells_rays_reason() -> None:
    assert jobs.failure("", details(message="working_dir: bad")) == "job one failed: working_dir: bad"


# Addresses that do not do


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(jobs.JobError, match=f"nothing answers at --address http://{address}"):
        jobs.jobs(address)


def test_something_listens_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ANSWER_LIMIT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(jobs.JobError, match="nothing answers"):
            jobs.jobs(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("address", ["ray://head:10001", "http://", "ftp://x"])
def test_not_a_dashboards_address(address: str) -> None:
    with pytest.raises(jobs.JobError, match="must be the dashboard's"):
        jobs.jobs(address)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, "hello", "no Ray dashboard"),
        (200, "[]", "no Ray dashboard"),
        (401, "", "asks for a token"),
        (200, '{"ray_version": "2.40.0"}', r"runs Ray 2\.40\.0"),
        (200, '{"ray_version": "99.1.0"}', r"runs Ray 99\.1\.0"),
    ],
)
def test_not_a_cluster_that_can_be_used(
    dashboard: tuple[str, type[FakeDashboard]], status: int, body: str, message: str
) -> None:
    address, handler = dashboard
    handler.status, handler.body = status, body
    with pytest.raises(jobs.JobError, match=message) as caught:
        jobs.connect(address)
    assert caught.value.exit_code == 2


# The token


def test_the_token_is_sent(
    dashboard: tuple[str, type[FakeDashboard]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, handler = dashboard
    jobs.connect(address)
    assert "Authorization" not in handler.got
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir(parents=True)
    file.write_text("from-home\n")
    jobs.connect(address)
    assert handler.got["Authorization"] == "Bearer from-home"
    other = tmp_path / "token"
    other.write_text("from-path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    jobs.connect(address)
    assert handler.got["Authorization"] == "Bearer from-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-variable")
    jobs.connect(address)
    assert handler.got["Authorization"] == "Bearer from-variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert jobs.token_header() == {}


def test_a_wrong_token(dashboard: tuple[str, type[FakeDashboard]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, handler = dashboard
    handler.status = 403
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(jobs.JobError, match="refuses this token") as caught:
        jobs.connect(address)
    assert "wrong" not in str(caught.value)


def test_a_token_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(TokenError, match="RAY_AUTH_TOKEN_PATH /nowhere/token: cannot be read"):
        jobs.token_header()


def test_the_given_address_wins_over_rays_variables(
    dashboard: tuple[str, type[FakeDashboard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert jobs.connect(dashboard[0]).get_address() == dashboard[0]
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


# A real job server


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Path]]:
    """The address of a head node with a token, started by docker/head.sh, and the file with its token."""
    first = free_ports(8)
    with tempfile.TemporaryDirectory(prefix="tp", dir="/tmp") as directory:
        token = Path(directory) / "token"
        token.touch(mode=0o600)
        token.write_text("a" * 64)
        environment = {key: value for key, value in os.environ.items() if key not in TOKENS} | {
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
                ["docker/head.sh"], cwd=CONFIGS.parent, env=environment, stdout=output, stderr=subprocess.STDOUT
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
    assert json.loads((tmp_path / "fetched" / "result.json").read_text()) == outcome.result
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

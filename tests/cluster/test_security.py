"""A process without the token gets in nowhere; what an embedded Ray listens on is this machine's loopback."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray
from free_ports import free_ports

from tpdist.launch import auth
from tpdist.launch.auth import TokenError, token_of_its_own, token_of_the_user, user_token
from tpdist.launch.cluster import ClusterError, connected, open_store
from tpdist.training.progress import Silent

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
DRIVER = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("IN", len(ray.nodes()))
"""
SUBMIT = """
import sys
from ray.job_submission import JobSubmissionClient
print("IN", JobSubmissionClient(sys.argv[1]).submit_job(entrypoint="true"))
"""
# as an intruder on this machine would: else Ray looks for 127.0.0.1 at the machine's own address
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without a token."""
    for name in (*auth.VARIABLES, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def write(file: Path, token: str, mode: int = 0o600) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(token)
    file.chmod(mode)
    return file


def attempt(script: str, address: str, home: Path, **token: str) -> str:
    """What a process of its own, with this token or none, gets to see at `address`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **token}
    done = subprocess.run(
        [sys.executable, "-c", script, address], env=environment, capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


NO_TOKENS: list[Mapping[str, str]] = [
    {"RAY_AUTH_MODE": "disabled"},
    {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64},
]


# The user's token


def test_where_the_token_is_looked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_token() is None
    write(home / ".ray" / "auth_token", "from-home\n")
    assert user_token() == "from-home"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(write(home / "other", "from-path")))
    assert user_token() == "from-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-variable")
    assert user_token() == "from-variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert user_token() is None


def test_no_token_where_one_is_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(TokenError, match=rf"^no token in {home}/\.ray/auth_token; write the cluster's there") as caught:
        user_token()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file or directory"), (b"\xff\xfe", "no text"), (b" \n", "no token in")]
)
def test_a_token_file_that_does_not_do(
    home: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, said: str
) -> None:
    file = home / "token"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with pytest.raises(TokenError, match=said) as caught:
        user_token()
    assert str(file) in str(caught.value)


def test_a_token_that_others_can_read(home: Path) -> None:
    said: list[str] = []
    file = write(home / ".ray" / "auth_token", "open", 0o644)
    assert user_token(said.append) == "open"
    assert said == [f"warning: others on this machine can read the token: chmod 600 {file}"]
    file.chmod(0o600)
    user_token(said.append)
    assert len(said) == 1


def test_afterwards_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    tokens = set()
    for _ in range(2):
        with token_of_its_own():
            assert os.environ["RAY_AUTH_MODE"] == "token"
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"
        assert "RAY_AUTH_MODE" not in os.environ
    assert len(tokens) == 2
    assert min(map(len, tokens)) == 64
    with token_of_the_user("here", tokens.add):
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(tokens) == 2


def test_a_connection_without_a_token_is_warned_of() -> None:
    said: list[str] = []
    with token_of_the_user("head:6379", said.append):
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
    (line,) = said
    assert line.startswith("warning: connecting to head:6379 without a token")


def test_the_workers_meet_where_the_controller_says_and_nowhere_else() -> None:
    store = open_store("127.0.0.1")
    listening = psutil.Process().net_connections(kind="inet")
    found = [entry.laddr.ip for entry in listening if entry.laddr and entry.laddr.port == store.port]
    assert set(found) == {"127.0.0.1"}
    store.set("a", "b")
    assert store.get("a") == b"b"


# An embedded Ray


@pytest.fixture(scope="module")
def embedded() -> Iterator[tuple[str, str]]:
    """Its address, its token."""
    with tempfile.TemporaryDirectory(prefix="tp", dir="/tmp") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", directory)
        with connected(None, 1, Silent()):
            yield ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]


def test_nobody_connects_to_an_embedded_ray(embedded: tuple[str, str], home: Path) -> None:
    with ThreadPoolExecutor() as both:  # Ray gives up after 20 s
        for seen in both.map(lambda token: attempt(DRIVER, embedded[0], home, **LOCAL, **token), NO_TOKENS):
            assert "IN " not in seen
            assert re.search("(?i)auth|token", seen), seen
    # what keeps them out is the token: who knew it would get in
    assert "IN 1" in attempt(DRIVER, embedded[0], home, **LOCAL, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=embedded[1])


def test_an_embedded_ray_listens_on_loopback_alone(embedded: tuple[str, str]) -> None:
    here = psutil.Process()
    listening = {
        (process.name(), entry.laddr.ip)
        for process in (here, *here.children(recursive=True))
        for entry in process.net_connections(kind="inet")
        if entry.status == psutil.CONN_LISTEN
    }
    assert any(name == "gcs_server" for name, _ in listening)
    assert {address for _, address in listening} <= LOOPBACK, listening


def test_an_embedded_ray_writes_its_token_nowhere(embedded: tuple[str, str], home: Path) -> None:
    _, token = embedded
    for process in psutil.Process().children(recursive=True):
        assert token not in " ".join(process.cmdline())
    (own,) = Path(os.environ["RAY_TMPDIR"]).iterdir()
    assert own.stat().st_mode & 0o777 == 0o700
    files = [path for path in own.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(token.encode() in path.read_bytes() for path in files)
    assert not (home / ".ray").exists()


# `ray start`, as the README says


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[str, str, Path]]:
    """The addresses of a head and of its dashboard, and the home of the user who started it."""
    generate, start = (
        next(line for line in README.splitlines() if pattern in line)
        for pattern in ("ray get-auth-token --generate", "ray start --head --num-cpus")
    )
    first = free_ports(8)
    ports = [f"--port={first}", f"--dashboard-port={first + 1}", f"--dashboard-agent-listen-port={first + 2}"]
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
            yield f"127.0.0.1:{first}", f"http://127.0.0.1:{first + 1}", Path(directory)
        finally:
            head.terminate()
            head.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("token", NO_TOKENS, ids=["none", "wrong"])
def test_nobody_gets_into_what_the_readme_starts(
    started: tuple[str, str, Path], home: Path, token: Mapping[str, str]
) -> None:
    for script, address in ((DRIVER, started[0]), (SUBMIT, started[1])):
        seen = attempt(script, address, home, **token)
        assert "IN " not in seen
        assert re.search("(?i)auth|token", seen), seen


@pytest.mark.slow
def test_who_has_the_readmes_token_gets_in(started: tuple[str, str, Path]) -> None:
    assert (started[2] / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    deadline = time.monotonic() + 60
    # the node's agent, which runs jobs, comes up last
    while "IN raysubmit_" not in (said := attempt(SUBMIT, started[1], started[2], RAY_AUTH_MODE="token")):
        assert "No available agent" in said, said
        assert time.monotonic() < deadline


@pytest.mark.slow
def test_what_a_run_says_of_the_token_it_lacks(started: tuple[str, str, Path]) -> None:
    heard = Heard()
    wants = rf"^the cluster at --address {started[0]} wants its token: "
    with pytest.raises(ClusterError, match=wants) as caught, connected(started[0], 1, heard):
        raise AssertionError("connected")
    assert caught.value.exit_code == 2
    assert heard.said[0].startswith(f"warning: connecting to {started[0]} without a token")


@pytest.mark.slow
def test_a_run_with_the_token_connects(started: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setenv("HOME", str(started[2]))
    with connected(started[0], 1, heard):
        assert ray.cluster_resources()["CPU"] == 4
    assert heard.said == []

"""A process without the token gets in nowhere; what an embedded Ray listens on is this machine's loopback."""

import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray
from intruder import DRIVER, NO_TOKENS, attempt

from tpdist.launch.auth import TokenError, token_of_its_own, token_of_the_user, user_token
from tpdist.launch.cluster import connected, open_meeting
from tpdist.training.progress import Silent

pytestmark = pytest.mark.usefixtures("home")

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
# as an intruder on this machine would: else Ray looks for 127.0.0.1 at the machine's own address
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def write(file: Path, token: str, mode: int = 0o600) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(token)
    file.chmod(mode)
    return file


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


def test_a_user_without_a_home_has_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that runs under a number which no list of users has."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
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
    meeting = open_meeting("127.0.0.1")
    listening = psutil.Process().net_connections(kind="inet")
    found = [entry.laddr.ip for entry in listening if entry.laddr and entry.laddr.port == meeting.port]
    assert set(found) == {"127.0.0.1"}
    meeting.set("a", "b")
    assert meeting.get("a") == b"b"


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

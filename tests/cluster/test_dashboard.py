"""`tpdist.launch.dashboard`: addresses that do not do, tokens."""

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tpdist.launch import dashboard as dashboard_module
from tpdist.launch.auth import TokenError
from tpdist.launch.dashboard import connect, token_header
from tpdist.launch.packing import JobError

pytestmark = pytest.mark.usefixtures("home")


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


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(JobError, match=f"nothing answers at --address http://{address}"):
        connect(address)


def test_a_name_that_no_host_can_have() -> None:
    with pytest.raises(JobError, match=r"nothing answers at --address http://a\.\.b:8265"):
        connect("a..b:8265")


def test_something_listens_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_module, "ANSWER_LIMIT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(JobError, match="nothing answers"):
        connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("address", ["ray://head:10001", "http://", "ftp://x", "http://[::1"])
def test_not_a_dashboards_address(address: str) -> None:
    with pytest.raises(JobError, match="must be the dashboard's"):
        connect(address)


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
    with pytest.raises(JobError, match=message) as caught:
        connect(address)
    assert caught.value.exit_code == 2


# The token


def test_the_token_is_sent(
    dashboard: tuple[str, type[FakeDashboard]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, handler = dashboard
    connect(address)
    assert "Authorization" not in handler.got
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir(parents=True)
    file.write_text("from-home\n")
    connect(address)
    assert handler.got["Authorization"] == "Bearer from-home"
    other = tmp_path / "token"
    other.write_text("from-path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    connect(address)
    assert handler.got["Authorization"] == "Bearer from-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-variable")
    connect(address)
    assert handler.got["Authorization"] == "Bearer from-variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token_header() == {}


def test_a_wrong_token(dashboard: tuple[str, type[FakeDashboard]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, handler = dashboard
    handler.status = 403
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(JobError, match="refuses this token") as caught:
        connect(address)
    assert "wrong" not in str(caught.value)


def test_a_token_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(TokenError, match="RAY_AUTH_TOKEN_PATH /nowhere/token: cannot be read"):
        token_header()


def test_the_given_address_wins_over_rays_variables(
    dashboard: tuple[str, type[FakeDashboard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert connect(dashboard[0]).get_address() == dashboard[0]
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"

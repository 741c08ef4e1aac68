"""`tpdist doctor`: each thing that can be wrong is found, with what to do about it."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tpdist.cli import main
from tpdist.launch import doctor
from tpdist.launch.doctor import Finding


def states(findings: Iterable[Finding]) -> list[str]:
    found = list(findings)
    assert all((finding.mend == "") == (finding.state == "fine") for finding in found), found
    return [finding.state for finding in found]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {finding["what"] for finding in found["findings"]} == {
        "versions", "devices", "threads", "ray", "network", "ports", "disk"
    }  # fmt: skip
    assert code == (0 if found["fit"] else 1)
    assert main(["doctor"]) == code
    assert len(capsys.readouterr().out.splitlines()) >= len(found["findings"])
    assert list(tmp_path.iterdir()) == []


def test_something_bad_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("disk", "bad", "full", "free some")])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == f"bad   disk      full\n{'':15} -> free some\n"


def test_ray_is_not_loaded():
    code = "import sys; from tpdist.launch.doctor import examine; examine(); print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_packages_that_are_missing_are_not_loaded(options: list[str]):
    """They are what it is to find."""
    blocked = "import sys; sys.modules |= dict.fromkeys(['ray', 'pyarrow', 'pydantic', 'safetensors', 'rich'])"
    code = f"{blocked}; from tpdist.cli import main; main(['doctor', *{options}])"
    assert "versions" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout


def test_versions(monkeypatch: pytest.MonkeyPatch):
    assert states(doctor.packages()) == ["fine"]
    needed = ["torch<1", "no-such-package>=2", "tensorflow; extra == 'x'", "numpy>=1"]
    monkeypatch.setattr(doctor, "requires", lambda _: needed)
    _, old, missing = doctor.packages()
    assert re.fullmatch(r"torch \d\S+, needed <1", old.found)
    assert missing.text().endswith("-> pip install 'no-such-package>=2'")


@pytest.mark.parametrize(
    ("given", "cores", "load", "state"),
    [
        ("2", 2, 0.5, "fine"),
        (None, 64, 9.0, "fine"),
        ("two", 2, 0.0, "bad"),
        (None, 1, 0.0, "note"),
        ("2", 2, 9.0, "note"),
    ],
)
def test_threads(given: str | None, cores: int, load: float, state: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(doctor.psutil, "getloadavg", lambda: (load, load, load))
    assert states(doctor.threads({"OMP_NUM_THREADS": given} if given else {}, cores)) == [state]


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert states(doctor.devices()) == ["fine"]
    monkeypatch.setattr(shutil, "which", lambda name: name)
    (finding,) = doctor.devices()
    assert (finding.state, "CUDA build" in finding.mend) == ("note", True)


@pytest.fixture
def listener():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_the_cluster_that_would_be_joined(listener: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    here = {"RAY_TMPDIR": str(tmp_path)}
    assert [finding.found for finding in doctor.ray_cluster(here)] == [
        "RAY_AUTH_MODE not set, token nowhere",
        "no cluster here; runs start an embedded one, which ends with them",
    ]
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{listener}\n")
    assert f"joins 127.0.0.1:{listener}" in list(doctor.ray_cluster(here))[-1].found
    closed = {**here, "RAY_ADDRESS": "127.0.0.1:1"}
    assert states(doctor.ray_cluster(closed)) == ["fine", "note"]
    assert states(doctor.ray_cluster({**here, "RAY_AUTH_MODE": "token"})) == ["fine", "bad", "fine"]
    here["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
    found = list(doctor.ray_cluster(here))  # Ray would refuse any command for it
    assert states(found) == ["fine", "bad", "fine"]
    assert found[1].found == f"RAY_AUTH_TOKEN_PATH names {tmp_path / 'token'}, where there is no file that you can see"
    found = list(doctor.ray_cluster({**here, "RAY_AUTH_TOKEN_PATH": "x" * 300}))  # the system says more than "no"
    assert states(found) == ["fine", "bad", "fine"]
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("a secret")
    found = list(doctor.ray_cluster({**here, "RAY_AUTH_MODE": "token"}))
    assert states(found) == ["fine", "fine"]
    assert "secret" not in str(found)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "local", "a..b:6379", "127.0.0.1:99999", "auto"])
def test_what_names_no_cluster(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever the variable or the file of the last `ray start` hold, it is said, and doctor goes on."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_bytes(b"\xff")  # as good as another user's
    *_, finding = doctor.ray_cluster({"RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": address})
    said = "ray_current_cluster cannot be read" if address == "auto" else f"RAY_ADDRESS names {address}, and nothing"
    assert finding.state == "note"
    assert said in finding.found


def test_a_token_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Root may read everything, so the system is made to say no."""
    (tmp_path / "token").touch(mode=0o600)
    monkeypatch.setattr("os.access", lambda *_: False)
    found = doctor.ray_cluster({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_TMPDIR": str(tmp_path)})
    assert states(found) == ["fine", "bad", "fine"]


def test_a_token_that_others_can_read(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("x")
    for mode, states in ((0o644, ["fine", "note"]), (0o600, ["fine"])):
        file.chmod(mode)
        found = list(doctor.ray_cluster({"RAY_AUTH_TOKEN_PATH": str(file), "RAY_TMPDIR": str(tmp_path)}))
        assert [finding.state for finding in found if "token" in finding.found] == states


def test_ports_that_are_taken():
    assert states(doctor.ports(lambda host, port: False)) == ["fine"]
    (finding,) = doctor.ports(lambda host, port: port == 8265)
    assert (finding.state, finding.found) == ("note", "in use: 8265 (the dashboard)")
    (finding,) = doctor.ports(lambda host, port: port != 8265)  # another run's Ray has an agent, too
    assert finding.found == "in use: 6379 (the head), 52365 (the agent that jobs need)"
    assert finding.mend.endswith("ray start --head --port PORT --dashboard-agent-listen-port PORT")


def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch):
    def unknown(_: str) -> str:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert states(doctor.network()) == ["note"]


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**28))
    assert set(states(doctor.disk())) <= {"bad", "note"}
    assert states(doctor.disk())[:2] == ["bad", "bad"]

"""The scripts in docker/ and cluster/: they are linted, need a token and a head, and pass signals and exit codes on."""

import shlex
import subprocess
from pathlib import Path

import pytest
from deployment import CLUSTER, DOCKER, ROOT, tool

SCRIPTS = sorted([*DOCKER.glob("*.sh"), *CLUSTER.glob("*.sh")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_scripts_pass_shellcheck() -> None:
    scripts = [str(path.relative_to(ROOT)) for path in SCRIPTS]
    done = subprocess.run([tool("shellcheck"), "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["head.sh", "worker.sh", "train.sh", "scaling.sh"])
def test_nothing_starts_without_a_token(script: str, tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TPDIST_TOKEN_FILE": str(tmp_path / "token")}
    done = subprocess.run([str(DOCKER / script), "configs/quickstart.yaml"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no token" in done.stderr


def test_a_head_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    (tmp_path / "token").chmod(0o600)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TPDIST_TOKEN_FILE": str(tmp_path / "token"),
           "TPDIST_HEAD": "127.0.0.1", "TPDIST_GCS_PORT": "1", "TPDIST_WAIT_S": "1"}  # fmt: skip
    done = subprocess.run([str(DOCKER / "worker.sh")], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "no head answered at 127.0.0.1:1 within 1 s" in done.stderr


BASH = ["bash", "-euo", "pipefail", "-c"]


def test_sigterm_lets_the_training_save_and_its_exit_code_is_passed_on() -> None:
    training = "trap 'sleep 0.5; echo saved; exit 130' TERM; echo ready; while true; do sleep 0.1; done"
    script = f"source docker/common.sh; run_training bash -c {shlex.quote(training)}"
    with subprocess.Popen([*BASH, script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.terminate()
        assert run.stdout.read() == "saved\n"
    assert run.returncode == 130


@pytest.mark.parametrize("code", [0, 3])
def test_a_scripts_exit_code_is_the_trainings(code: int) -> None:
    script = f"source docker/common.sh; run_training bash -c 'exit {code}'"
    assert subprocess.run([*BASH, script], cwd=ROOT).returncode == code

"""`tpdist.launch.entrypoint`: the job's command, and what its log tells."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType
from stand_ins import RECORD, stand_in

from tpdist.launch.entrypoint import entrypoint_of, failure, find_result


def run_entrypoint(line: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **env}
    return subprocess.run(["sh", "-c", line], env=environment, cwd=home, capture_output=True, text=True)


def test_the_command_reaches_the_training_unharmed(tmp_path: Path) -> None:
    command = stand_in(tmp_path, RECORD)
    overrides = ["run.name=a b'c\"$HOME;`id`", "data.store=$TPDIST_SHARED/stores/it's"]
    line = entrypoint_of("my configs/a.yaml", overrides, "$TPDIST_SHARED/runs/one", command)
    done = run_entrypoint(line, tmp_path / "home")
    result = find_result(done.stdout)
    shared = tmp_path / "home" / "tpdist"
    assert done.returncode == 0, done.stderr
    assert result is not None
    assert result["args"] == [
        "my configs/a.yaml", "--run-dir", f"{shared}/runs/one", "--address", "auto",
        "--set", overrides[0], f"data.store={shared}/stores/it's",
    ]  # fmt: skip


def test_the_cluster_says_where_runs_go(tmp_path: Path) -> None:
    line = entrypoint_of("a.yaml", [], "$TPDIST_SHARED/runs/one", stand_in(tmp_path, RECORD))
    done = run_entrypoint(line, tmp_path / "home", TPDIST_SHARED=str(tmp_path / "shared"))
    result = find_result(done.stdout)
    assert result is not None
    assert result["run"] == str(tmp_path / "shared" / "runs" / "one")
    assert "--set" not in result["args"]


def test_a_run_goes_on_where_it_is(tmp_path: Path) -> None:
    line = entrypoint_of(None, ["run.epochs=9"], "$TPDIST_SHARED/runs/one", stand_in(tmp_path, RECORD))
    result = find_result(run_entrypoint(line, tmp_path / "home").stdout)
    run = tmp_path / "home" / "tpdist" / "runs" / "one"
    assert result is not None
    assert result["args"] == ["--resume", str(run), "--address", "auto", "--set", "run.epochs=9"]


def test_what_an_earlier_part_of_the_run_reached_is_not_this_ones_result(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text('{"run": "of before"}')
    line = entrypoint_of(None, [], str(run), stand_in(tmp_path, "sys.exit(130)\n"))
    done = run_entrypoint(line, tmp_path / "home")
    assert done.returncode == 130
    assert find_result(done.stdout) is None


def test_the_exit_code_is_the_trainings(tmp_path: Path) -> None:
    line = entrypoint_of("a.yaml", [], "runs/one", stand_in(tmp_path, "print('tpdist: no'); sys.exit(3)\n"))
    done = run_entrypoint(line, tmp_path / "home")
    assert done.returncode == 3
    assert find_result(done.stdout) is None


def test_sigterm_to_all_lets_the_training_finish(tmp_path: Path) -> None:
    body = "def end(*_):\n time.sleep(0.5)\n print('saved', flush=True)\n sys.exit(130)\n"
    body += "signal.signal(signal.SIGTERM, end)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    line = entrypoint_of("a.yaml", [], str(tmp_path / "run"), stand_in(tmp_path, body))
    process = subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert "saved" in process.communicate(timeout=20)[0]
    assert process.returncode == 130


@pytest.mark.parametrize("log", ["", "TPDIST_RESULT {", "TPDIST_RESULT 3", "x TPDIST_RESULT {}"])
def test_a_log_without_a_result(log: str) -> None:
    assert find_result(log) is None


def details(**fields: object) -> JobDetails:
    known = {"type": JobType.SUBMISSION, "submission_id": "one", "status": JobStatus.FAILED, "entrypoint": "x"}
    return JobDetails(**{**known, **fields})  # pyright: ignore[reportArgumentType]


def test_a_failed_jobs_own_error_comes_first() -> None:
    log = "2026-01-01 05:12:07,843\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    log += "epoch 1\ntpdist: a worker failed\nValueError: its own\n\nrun: /x\n"
    text = failure(log, details(driver_exit_code=1))
    assert text == "tpdist: a worker failed\nValueError: its own\njob one failed with exit code 1"


def test_a_job_without_tpdist_says_so() -> None:
    assert "tpdist is not installed" in failure("sh: tpdist: not found", details(driver_exit_code=127))


def test_a_job_that_never_began_tells_rays_reason() -> None:
    assert failure("", details(message="working_dir: bad")) == "job one failed: working_dir: bad"

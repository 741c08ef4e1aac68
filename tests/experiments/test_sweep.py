"""A sweep under Ray: what is done stays, what was interrupted goes on, what fails is a row."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from small_runs import Listener

import tpdist
from tpdist.cli import main
from tpdist.experiments import sweep as module
from tpdist.experiments.points import expand
from tpdist.experiments.sweep import dry_run, sweep
from tpdist.experiments.sweep_dir import SweepDirectory
from tpdist.training.progress import Silent


def test_where_a_sweep_goes(file: Path):
    """Two files without a name do not share a directory."""
    assert dry_run(file, [], None)[-2].startswith("runs/a-sweep: ")
    assert dry_run(file, ["run.name=mine"], None)[-2].startswith("runs/mine-sweep: ")
    assert dry_run(file, [], "out")[-2].startswith("out: ")


def test_what_no_arm_reads_is_said_once_before_anything_runs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    heard, note = Listener(), "note: --set: method.sweeps changes nothing with method.name: bptt; read by costate"
    monkeypatch.setattr(module, "run_tasks", lambda *_: None)
    sweep(file, ["method.sweeps=3"], tmp_path / "out", None, heard)
    assert [line for line in heard.said if line.startswith("note: ")] == [note] == heard.said[:1]
    lines = dry_run(file, ["method.sweeps=3"], tmp_path / "new")
    assert [line for line in lines if line.startswith("note: ")] == [note] == lines[:1]


def test_a_dry_run_knows_which_seeds_follow(file: Path, home: SweepDirectory, done: Callable):
    points = expand(file, arms=["bptt"])
    done(points[0], 7.0)
    done(points[2], 8.0)
    ended = f"{home.path}: 1 points to run, 2 done, 0 failed"
    lines = dry_run(file, [], home.path, ["bptt"])
    assert (lines[0], lines[-1]) == ("bptt  lr=0.001  seed 1", ended)


def test_a_sweep_is_gone_on_with(file: Path, home: SweepDirectory, monkeypatch: pytest.MonkeyPatch):
    heard = Listener()
    points = {(p.arm, p.config.optimizer.lr, p.seed): p for p in expand(file)}
    # one that was cut off before its result was written, and one before its first checkpoint
    cut, begun = points["bptt", 0.001, 0], points["bptt", 0.05, 0]
    whole = tpdist.train(cut.config, home.run(cut))
    (home.run(cut) / "result.json").unlink()
    home.run(begun).mkdir(parents=True)
    (home.run(begun) / "config.yaml").write_text("half")

    rows = sweep(file, [], home.path, None, heard)
    by_point = {row["point"]: row for row in rows}
    assert by_point[cut.name]["valid_perplexity"] == whole.valid_perplexity
    assert by_point[cut.name]["steps"] == whole.steps
    assert by_point[begun.name]["state"] == "done"
    assert by_point[begun.name]["tokens"] == 2 * 199
    # the other seed runs the best setting alone; an arm whose every setting fails has none
    assert [(row["arm"], row["set.optimizer.lr"], row["seed"]) for row in rows] == [
        ("bptt", 0.001, 0), ("bptt", 0.05, 0), ("bptt", 0.05, 1), ("broken", 0.001, 0), ("broken", 0.05, 0),
    ]  # fmt: skip
    assert {row["torch"] for row in rows if row["state"] == "done"} == {torch.__version__}
    failed = [row for row in rows if row["state"] == "failed"]
    assert [row["arm"] for row in failed] == ["broken", "broken"]
    assert "takes no 'no_such'" in failed[0]["error"]
    assert pq.read_table(home.path / "results.parquet").to_pylist() == rows
    assert len([line for line in heard.said if "seed" in line]) >= 5

    def nothing_runs(next_tasks: Callable[[], list], *_: object) -> None:
        assert next_tasks() == []

    monkeypatch.setattr(module, "run_tasks", nothing_runs)
    assert sweep(file, [], home.path, None, Silent()) == rows
    told = Listener()
    tested = sweep(file, [], home.path, None, told, test=True)
    assert any(line.startswith("bptt: ") and "test perplexity" in line for line in told.said)
    assert told.said[-1] == f"every point is a row of {home.path / 'results.parquet'}"
    chosen = [row["point"] for row in tested if row["test_perplexity"] is not None]
    assert chosen == [points["bptt", 0.05, 0].name, points["bptt", 0.05, 1].name]
    again: list[str] = []
    monkeypatch.setattr(module, "run_tasks", lambda tasks, *_: again.extend(task.run.name for task in tasks()))
    sweep(file, [], home.path, None, Silent(), retry=True)
    assert again == [row["point"] for row in failed]


def test_a_sweep_of_failures_alone_has_failed(file: Path, home: SweepDirectory, capsys: pytest.CaptureFixture[str]):
    points = [point for point in expand(file) if point.seed == 0]
    home.path.mkdir()
    (home.path / "failed").mkdir()
    for point in points:
        home.failure(point).write_text('{"error": "too few tokens"}')
    assert main(["sweep", str(file), "--dir", str(home.path), "--quiet"]) == 1
    why = f"all {len(points)} points failed; --retry runs them again: too few tokens"
    assert capsys.readouterr().err == f"tpdist: {home.path}: {why}\n"
    assert dry_run(file, [], home.path)[-1].endswith(f"{len(points)} failed; --retry runs them again")
    assert dry_run(file, [], home.path, retry=True)[-2].endswith(f"{len(points)} points to run, 0 done, 0 failed")


@pytest.mark.slow  # Ray takes its time to see it
@pytest.mark.timeout(120)
def test_points_that_ray_takes_with_it_have_not_failed(file: Path, tmp_path: Path):
    """Somebody's `ray stop --force`, a machine that runs out of memory: the same command goes on."""
    home = tmp_path / "out"
    changes = ["run.epochs=100000", "sweep.arms={bptt: {set: {method.name: bptt}}}"]
    command = [sys.executable, "-m", "tpdist", "sweep", str(file), "--dir", str(home), "--set", *changes]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as sweeping:
        while not any(home.glob("points/*/checkpoints/*")):
            assert sweeping.poll() is None
            time.sleep(0.1)
        os.kill(_child(sweeping.pid, "raylet"), signal.SIGKILL)
        _, said = sweeping.communicate()
    assert sweeping.returncode == 2
    assert said == "tpdist: Ray has ended; the same command goes on from what is saved\n"
    assert dry_run(file, changes, home)[-2] == f"{home}: 2 points to run, 0 done, 0 failed"


def _child(pid: int, name: str) -> int:
    """The process of that name that `pid` has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            own, _, rest = stat.read_text().partition(" (")
            comm, _, rest = rest.rpartition(") ")
            if comm == name and int(rest.split()[1]) == pid:
                return int(own)
    raise AssertionError(f"{pid} has no {name}")

"""What a sweep would fail on is said before any of its points begins."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tpdist.data import open_or_prepare
from tpdist.errors import ConfigError, DataError
from tpdist.experiments import precheck
from tpdist.experiments.points import expand
from tpdist.experiments.sweep import dry_run, sweep
from tpdist.experiments.sweep_dir import SweepDirectory
from tpdist.training.progress import Silent


def test_what_will_fail_is_seen_beforehand(file: Path, home: SweepDirectory):
    lines = dry_run(file, [], home.path)
    assert [line.split()[0] for line in lines[:4]] == ["bptt", "bptt", "broken", "broken"]
    seen = ["would fail: " in line and ": optimizer.options" in line for line in lines[:4]]
    assert seen == [False, False, True, True]
    too_long = ["batching.blocks=500"]
    assert not any("would fail: batching" in line for line in dry_run(file, too_long, home.path))
    open_or_prepare(expand(file)[0].config.data)
    lines = dry_run(file, too_long, home.path)
    assert "would fail: --set: batching.blocks: a window of 500 blocks is longer than a stream" in lines[0]
    with pytest.raises(ConfigError, match=r"^--set: batching\.blocks: a window of 500 blocks"):  # no setting could run
        sweep(file, [*too_long, "sweep.arms={bptt: {set: {method.name: bptt}}}"], home.path, None, Silent())
    assert not (home.path / "failed").exists()
    if not torch.cuda.is_available():
        lines = dry_run(file, ["run.device=cuda"], home.path)
        assert all("would fail: --set: run.device: torch sees no CUDA device" in line for line in lines[:4])
        lines = dry_run(file, ["run.device=cuda"], home.path, address="10.0.0.1:6379")
        assert "would fail" not in lines[0]


def test_a_dry_run_sees_that_there_are_too_few_gpus(file: Path, home: SweepDirectory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    lines = dry_run(file, ["cluster.gpus_per_worker=0.25"], home.path)
    why = "would fail: --set: cluster.gpus_per_worker: this machine has 0 GPUs, where a worker with 0.25 does not fit"
    assert [why in line for line in lines if "seed 0" in line] == [True] * 4


@pytest.mark.parametrize(
    ("key", "allow"),
    [
        ("model.cell", "model.allow_cells_from"),
        ("method.visit", "method.allow_visits_from"),
        ("objective.penalty", "objective.allow_penalties_from"),
    ],
)
def test_own_code_that_cannot_be_loaded_is_seen_beforehand(key: str, allow: str, file: Path, home: SweepDirectory):
    arms = f"sweep.arms={{a: {{set: {{method.name: pm, {key}: 'nowhere:mine', {allow}: [nowhere]}}}}}}"
    lines = dry_run(file, [arms], home.path)
    assert [f"{key}: cannot load 'nowhere:mine'" in line for line in lines[:2]] == [True, True]


def test_a_corpus_is_read_once_for_all_settings(file: Path, monkeypatch: pytest.MonkeyPatch):
    points, opened = expand(file), []
    open_or_prepare(points[0].config.data)
    monkeypatch.setattr(precheck, "open_or_prepare", lambda data: opened.append(data) or open_or_prepare(data))
    assert len(precheck.faults(points, here=False)) == 2
    assert len(opened) == 1


def test_a_corpus_that_is_not_there_is_said_before_any_point_begins(file: Path, tmp_path: Path, home: SweepDirectory):
    changes = ["data.recipe=ptb", f"data.store={tmp_path / 'none'}"]
    for go in (lambda: sweep(file, changes, home.path, None, Silent()), lambda: dry_run(file, changes, home.path)):
        with pytest.raises(DataError, match=r"none: no such store; run `tpdist data prepare ptb"):
            go()
    assert not (home.path / "failed").exists()
    changes = [f"data.store={tmp_path / 'new'}"]
    assert any("would be prepared first" in line for line in dry_run(file, changes, home.path))
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    assert any("would be prepared first" in line for line in dry_run(file, changes, home.path))


def test_a_finished_sweep_asks_for_no_corpus(file: Path, tmp_path: Path, home: SweepDirectory, done: Callable):
    changes = ["data.recipe=ptb", f"data.store={tmp_path / 'none'}"]
    for point in expand(file, changes, ["bptt"]):
        if point.seed == 0 or point.config.optimizer.lr == 0.05:  # the best, by its figure
            done(point, 7.0 if point.config.optimizer.lr == 0.05 else 8.0)
    rows = sweep(file, changes, home.path, None, Silent(), arms=["bptt"])
    assert [row["state"] for row in rows] == ["done"] * 3
    assert dry_run(file, changes, home.path, ["bptt"]) == [f"{home.path}: 0 points to run, 3 done, 0 failed"]

"""`tpdist sweep --test`: what was chosen on validation is evaluated on the test split, once it is decided, and once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import Listener

from tpdist.errors import NonFiniteError
from tpdist.experiments import sweep as module
from tpdist.experiments.points import expand
from tpdist.experiments.sweep import sweep
from tpdist.experiments.sweep_dir import SweepDirectory
from tpdist.launch import tasks
from tpdist.training.evaluation import Evaluation
from tpdist.training.progress import Silent


def test_the_test_split_waits_for_the_choice(
    file: Path, home: SweepDirectory, done: Callable, monkeypatch: pytest.MonkeyPatch
):
    """Where time is up, a setting that has not been tried may be better than the best so far."""
    points, asked = [p for p in expand(file) if p.arm == "bptt"], []
    done(points[0], 9.0)

    def evaluate(run: Path, split: str, overrides: list[str]) -> Evaluation:
        assert split == "test"
        asked.append(run)
        return Evaluation(2.0, 10)

    monkeypatch.setattr(module, "run_tasks", lambda *_: None)
    monkeypatch.setattr(module, "evaluate", evaluate)
    rows = sweep(file, [], home.path, None, Silent(), test=True, arms=["bptt"])
    assert not asked
    assert [(row["seed"], row["chosen"]) for row in rows] == [(0, True), (1, True), (0, False)]
    done(points[2], 8.0)
    heard = Listener()
    sweep(file, [], home.path, None, heard, test=True, arms=["bptt"], limit_s=0.0)
    assert not asked  # nor is it begun once time is up
    assert "time is up before the test split; the same command goes on" in heard.said
    rows = sweep(file, [], home.path, None, Silent(), test=True, arms=["bptt"])
    assert asked == [home.run(points[2])]
    assert [row["chosen"] for row in rows if row["state"] == "done"] == [False, True]


def test_a_blow_up_on_the_test_split_is_kept_and_stops_nothing(
    file: Path, home: SweepDirectory, done: Callable, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    for point in expand(file, arms=["bptt"]):
        done(point, 7.0)

    def blows_up(run: Path, split: str, overrides: list[str]) -> Evaluation:
        asked.append(run)
        raise NonFiniteError("the test perplexity is inf")

    monkeypatch.setattr(module, "evaluate", blows_up)
    for _ in range(2):
        rows = sweep(file, [], home.path, None, Silent(), test=True, arms=["bptt"])
        assert [row["test_perplexity"] for row in rows] == [None] * len(rows)
    assert len(asked) == len(set(asked)) == 2


def test_a_point_made_on_a_gpu_is_tested_without(file: Path, home: SweepDirectory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks.ray, "get_gpu_ids", list)
    for point in expand(file, arms=["bptt"]):
        assert tasks._run(point.config, str(home.run(point)), 1) is None
        written = home.run(point) / "config.yaml"
        written.write_text(written.read_text().replace("device: cpu", "device: cuda"))
    monkeypatch.setattr(module, "run_tasks", lambda *_: None)
    rows = sweep(file, [], home.path, None, Silent(), test=True, arms=["bptt"])
    assert [row["test_perplexity"] is not None for row in rows if row["chosen"]] == [True, True]

"""What a sweep shows: a table on a terminal, lines in a pipe, a summary at the end."""

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tpdist.experiments.points import expand
from tpdist.experiments.sweep_dir import SweepDirectory
from tpdist.experiments.table import Table, draw, summary
from tpdist.training.progress import Plain


class Heard(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def row(seed: int, state: str = "waiting", **figures: float | str | None) -> dict[str, Any]:
    empty = {"valid_perplexity": None, "best_epoch": None, "error": None}
    return {"arm": "ours", "seed": seed, "state": state, "set.optimizer.lr": 0.1} | empty | figures


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    rows = [row(0, "done", valid_perplexity=12.0, best_epoch=7), row(1), row(2), row(3, "failed", error="no")]
    running = tmp_path / "1"
    running.mkdir()
    lines = [
        {"kind": "epoch", "epoch": 1, "step": 900, "valid_perplexity": 34.5},
        {"kind": "step", "epoch": 2, "step": 1040},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (running / "metrics.jsonl").write_text(text + '{"kind": "st', encoding="utf-8")  # a line that is being written
    return rows, [tmp_path / str(number) for number in range(4)]


def test_running_points_come_first_and_move(sweep: tuple[list[dict[str, Any]], list[Path]]):
    out = io.StringIO()
    Console(file=out, width=100).print(draw(*sweep))
    title, *lines = [line for line in out.getvalue().splitlines() if "lr=0.1" in line or "points" in line]
    assert title.strip() == "1 of 4 points done, 1 failed"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert cells == [
        ["ours  lr=0.1  seed 1", "running", "1,040", "1", "34.50"],
        ["ours  lr=0.1  seed 0", "done", "", "7", "12.00"],
        ["ours  lr=0.1  seed 3", "failed", "", "", ""],
        ["ours  lr=0.1  seed 2", "waiting", "", "", ""],
    ]


def test_in_a_pipe_there_are_lines(sweep: tuple[list[dict[str, Any]], list[Path]]):
    heard = Heard()
    table = Table(heard, Console(file=io.StringIO()))
    table.show(*sweep)
    table.show(*sweep)
    table.ended(sweep[0][0])
    table.ended(sweep[0][3])
    assert heard.said == [
        "2 of 4 points to run",
        "   1  ours  lr=0.1  seed 0  valid ppl 12.00",
        "   2  ours  lr=0.1  seed 3  failed: no",
    ]


def test_on_a_terminal_it_is_drawn(sweep: tuple[list[dict[str, Any]], list[Path]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    out, heard = io.StringIO(), Heard()
    table = Table(heard, Console(file=out, force_terminal=True, width=100))
    table.show(*sweep)
    table.ended(sweep[0][0])
    table.close()
    assert "1 of 4 points done" in out.getvalue()
    assert heard.said == []
    monkeypatch.setenv("TERM", "dumb")  # where it would be drawn once, at the end
    Table(heard).show(*sweep)
    assert heard.said == ["2 of 4 points to run"]


def test_a_terminal_that_is_gone_ends_no_sweep(
    sweep: tuple[list[dict[str, Any]], list[Path]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    ours, theirs = os.openpty()
    with open(theirs, "w") as screen:
        table = Table(Heard(), Console(file=screen, force_terminal=True, width=100))
        table.show(*sweep)
        os.close(ours)
        table.show(*sweep)
        table.close()
        with suppress(OSError):
            screen.close()


def test_the_table_shows_what_runs_first_and_no_test_figure(file: Path, home: SweepDirectory, done: Callable):
    points = expand(file, arms=["bptt"])
    done(points[0], 9.25)
    home.run(points[1]).mkdir(parents=True)
    epoch = {"kind": "epoch", "epoch": 1, "step": 40, "valid_perplexity": 8.5}
    (home.run(points[1]) / "metrics.jsonl").write_text(json.dumps(epoch) + '\n{"kind": "step", "step": 50}\n')
    console = Console(width=100, record=True)
    console.print(draw([home.row(p) for p in points], [home.run(p) for p in points]))
    lines = [line.split() for line in console.export_text().splitlines() if "lr=" in line]
    states = [next(word for word in line if word in ("running", "done", "waiting")) for line in lines]
    assert states == ["running", "done", "waiting", "waiting"]
    assert "8.50" in lines[0]
    assert "9.25" in lines[1]


def test_an_arm_without_a_figure_says_why():
    rows = [{"arm": arm, "state": state, "error": error} for arm, state, error in (
        ("early", "waiting", None), ("bad", "failed", "too few tokens"), ("bad", "waiting", None)
    )]  # fmt: skip
    assert summary(rows) == [
        "early: none is done; 1 point is waiting",
        "bad: none is done; 1 of 2 points failed, --retry runs them again: too few tokens",
    ]


def test_the_test_figure_is_that_of_the_best_setting():
    """Another may have been evaluated while it was the best."""
    figures = ((0.001, 7.0, 70.0), (0.05, 6.0, 60.0))
    rows = [
        {"arm": "a", "seed": 0, "state": "done", "error": None, "set.lr": lr, "valid_perplexity": valid,
         "test_perplexity": test} for lr, valid, test in figures
    ]  # fmt: skip
    assert summary(rows) == [
        "a: 2 settings tried, best lr=0.05: validation perplexity 6.00 over 1 seed, test perplexity 60.00 over 1"
    ]


def test_a_summary_counts_settings_and_spreads_over_seeds():
    values = [(0.1, 0, 6.0), (0.1, 1, 8.0), (0.2, 0, None)]
    rows = [
        {"arm": "a", "seed": seed, "state": "done" if valid else "waiting", "error": None, "set.lr": lr,
         "valid_perplexity": valid, "test_perplexity": None} for lr, seed, valid in values
    ]  # fmt: skip
    assert summary(rows) == [
        "a: 1 of 2 settings tried, best lr=0.1: validation perplexity 7.00 (standard deviation 1.41) over 2 seeds"
    ]

"""What is changed of a run's settings where it goes on is said, and noted."""

import json
from pathlib import Path

import pytest
from small_runs import Listener, small

import tpdist
from tpdist.experiments.report import report
from tpdist.training.changes import changes, note_changes
from tpdist.training.run_dir import RunDirectory


def test_what_is_changed_is_said_and_noted(small_corpus: Path, tmp_path: Path):
    run, listener = RunDirectory(tmp_path / "run"), Listener()
    tpdist.train(small(small_corpus, run={"epochs": 1}), run.path)
    assert changes(run) == []
    tpdist.resume(run.path, ["run.epochs=2", "method.name=costate", "optimizer.options.eps=1e-7"], listener)
    said = next(line for line in listener.said if line.startswith("changed from here on: "))
    assert 'method.name "admm" -> "costate"' in said
    assert "run.epochs 1 -> 2" in said
    assert "method.h_steps 1 -> 0" in said  # what the method fixes
    assert "optimizer.options.eps null -> 1e-07" in said
    noted = changes(run)
    assert len(noted) == said.count(" -> ")
    assert {(change["step"], change["epoch"]) for change in noted} == {(9, 2)}
    report([str(run.path)], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<td>9</td><td>method.name</td><td>admm</td><td>costate</td>" in html
    listener = Listener()
    tpdist.resume(run.path, ["run.epochs=3"], listener)
    assert [line for line in listener.said if "->" in line] == ["changed from here on: run.epochs 2 -> 3"]
    assert changes(run)[: len(noted)] == noted


def test_what_is_edited_in_the_runs_file_is_noted_too(small_corpus: Path, tmp_path: Path):
    run, listener = RunDirectory(tmp_path / "run"), Listener()
    tpdist.train(small(small_corpus, run={"epochs": 1}), run.path)
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("epochs: 1\n", "epochs: 2\n"))
    tpdist.resume(run.path, ["optimizer.lr=0.01"], listener)
    assert "changed from here on: optimizer.lr 0.02 -> 0.01, run.epochs 1 -> 2" in listener.said
    noted = changes(run)
    assert [change["setting"] for change in noted] == ["optimizer.lr", "run.epochs"]
    (run.path / ".config.yaml").unlink()  # a run of an older version, or copied without hidden files
    tpdist.resume(run.path, ["run.epochs=3"])
    assert [change["setting"] for change in changes(run)[2:]] == ["run.epochs"]


@pytest.mark.parametrize("line", [b"\xff", b"{}", b"[]", b"3", b"[" * 3000 + b"]" * 3000])
def test_a_damaged_line_of_changes_is_left_out(line: bytes, tmp_path: Path):
    whole = {"step": 9, "epoch": 2, "setting": "run.epochs", "was": 1, "now": 2}
    lines = [line, json.dumps(whole).encode(), json.dumps(whole | {"step": "x"}).encode()]
    (tmp_path / "changes.jsonl").write_bytes(b"\n".join(lines))
    assert changes(RunDirectory(tmp_path)) == [whole]


def test_what_is_noted_behind_a_line_that_was_cut_off_is_kept(small_corpus: Path, tmp_path: Path):
    """By a full disk, say."""
    run = RunDirectory.create(small(small_corpus), tmp_path / "run")
    first = note_changes(run, small(small_corpus, run={"epochs": 3}), 2, 9)
    with (run.path / "changes.jsonl").open("a") as file:
        file.write('{"step": 18, "epo')
    second = note_changes(run, small(small_corpus, run={"epochs": 4}), 3, 18)
    assert changes(run) == [*first, *second]


def test_a_resumed_run_says_how_far_its_learning_rate_has_fallen(small_corpus: Path, tmp_path: Path):
    decay, listener = {"factor": 0.5, "start_epoch": 2}, Listener()
    tpdist.train(small(small_corpus, optimizer={"decay": decay}, run={"epochs": 2}), tmp_path / "run")
    tpdist.resume(tmp_path / "run", ["run.epochs=3", "optimizer.lr=0.01"], listener)
    place = "resumed at step 18, after epoch 2"
    assert f"{place}; learning rate 0.0025, 0.25 of optimizer.lr by its decay so far" in listener.said

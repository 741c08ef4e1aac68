"""tpdist reproduce long-memory."""

import json
from pathlib import Path

import pytest

from tpdist.cli import main
from tpdist.experiments.longmemory import with_others

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs/paper").mkdir(parents=True)
    for name in ("long-memory.yaml", "paper.json"):
        (tmp_path / "configs/paper" / name).symlink_to(ROOT / "configs/paper" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_arms_run_once_and_are_kept(clone: Path, capsys: pytest.CaptureFixture[str]):
    (clone / "RESULTS.md").write_text("<!-- results: long-memory -->\n<!-- end -->\n", encoding="utf-8")
    short = ["--set", "run.epochs=1", "model.hidden=2", "sweep.seeds=[0]", "batching.streams=2"]
    command = ["reproduce", "long-memory", "--cells", "bptt-20", "lag60-costate", *short, "--keep"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "bptt-20, seed 0: not solved, error 0." in first
    kept = json.loads((clone / "configs/paper/results/long-memory.json").read_text())
    assert [run["updates"] for runs in kept["adding"].values() for run in runs] == [25, 25]
    rows = (clone / "RESULTS.md").read_text().splitlines()
    assert [row.split(" | ")[:4] for row in rows if "of 1" in row] == [
        ["| bptt-20", "500", "0 of 1", "0"],
        ["| lag60-costate", "60", "0 of 1", "0"],
    ]
    assert main(command) == 0  # what is done is not done again
    assert "seed 0:" not in capsys.readouterr().out
    assert json.loads((clone / "configs/paper/results/long-memory.json").read_text()) == kept


def test_what_would_run(clone: Path, capsys: pytest.CaptureFixture[str]):
    command = ["reproduce", "long-memory", "--cells", "bptt-20", "--set", "sweep.seeds=[0,1]", "run.epochs=1"]
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("runs/reproduce-long-memory: 2 points to run, 0 done\n")
    assert main([*command, "model.hidden=2", "batching.streams=2", "--quiet"]) == 0
    assert main([*command, "model.hidden=2", "batching.streams=2", "--dry-run"]) == 0
    assert capsys.readouterr().out == "runs/reproduce-long-memory: 0 points to run, 2 done\n"
    assert main(["reproduce", "long-memory", "--test"]) == 2
    assert "reproduce long-memory: takes no --test" in capsys.readouterr().err


def test_a_change_that_no_arm_reads_is_said(clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("TPDIST_SET", "data.recipe=synthetic")  # for every command
    short = ["sweep.seeds=[0]", "run.epochs=1", "model.hidden=2", "batching.streams=2"]
    unread = ["model.cell=lstm", "optimizer.decay={factor: 0.5}", "method.sweeps=3"]
    command = ["reproduce", "long-memory", "--cells", "bptt-20", "--set", *short, *unread]
    notes = [
        "note: --set: model.cell changes nothing in long-memory",
        "note: --set: optimizer.decay changes nothing in long-memory",
        "note: --set: method.sweeps changes nothing with method.name: bptt; read by costate",
    ]
    for mode in (["--dry-run"], []):
        assert main([*command, *mode]) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")] == notes


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--device cuda", "--device: run.device: long-memory trains on a CPU, one thread; must be cpu"),
        ("--set run.device=cuda", "--set: run.device: long-memory trains on a CPU, one thread; must be cpu"),
        ("--set run.test=true", "reproduce long-memory: takes no --set run.test: it trains in this process"),
    ],
)
def test_what_it_has_not_is_refused(clone: Path, capsys: pytest.CaptureFixture[str], given: str, line: str):
    for mode in (["--dry-run"], []):
        assert main(["reproduce", "long-memory", *given.split(), *mode]) == 2
        assert capsys.readouterr().err.startswith(f"tpdist: {line}, ")


def test_copying_arms_join_what_is_kept(clone: Path, capsys: pytest.CaptureFixture[str]):
    """Every method runs; arms that a command leaves out stay."""
    (clone / "RESULTS.md").write_text("<!-- results: long-memory -->\n<!-- end -->\n", encoding="utf-8")
    short = ["--keep", "--set", "model.hidden=2", "sweep.seeds=[0]", "batching.streams=2"]
    # an arm's own settings lie above these, so its epochs are shortened in the file
    file = clone / "configs/paper/long-memory.yaml"
    text = file.read_text(encoding="utf-8")
    file.unlink()
    file.write_text(text.replace("run.epochs: 40", "run.epochs: 1"), encoding="utf-8")
    copying = ["copy-bptt-*", "copy-costate*", "copy-admm", "copy-alm"]
    assert main(["reproduce", "long-memory", "--cells", "lag60-bptt-20", *short, "run.epochs=1"]) == 0
    assert main(["reproduce", "long-memory", "--cells", *copying, *short]) == 0
    assert "copy-costate, seed 0: not solved, error 1." in capsys.readouterr().out
    kept = json.loads((clone / "configs/paper/results/long-memory.json").read_text())
    assert list(kept["adding"]) == ["lag60-bptt-20"]
    wanted = ["bptt-20", "bptt-200", "bptt-200-fixed", "costate", "costate-kept", "admm", "alm"]
    assert list(kept["copying"]) == [f"copy-{name}" for name in wanted]
    rows = [row.split(" | ") for row in (clone / "RESULTS.md").read_text().splitlines() if "of 1" in row]
    assert [(row[1], row[4]) for row in rows] == [("60", "0.1667"), *[("197", "1.3863")] * 7]


def test_what_was_kept_before_keeps_its_versions_and_its_command():
    old = {"command": "reproduce --cells a", "versions": {"torch": "0.1"}, "adding": {"a": [1]}, "copying": {}}
    new = {"command": "reproduce", "versions": {"torch": "0.2"}, "adding": {"b": [2]}, "copying": {}}
    joined = with_others(new, old)
    assert joined["adding"] == {"a": [1], "b": [2]}
    assert joined["command"] == "reproduce --cells a; reproduce"
    assert joined["versions"]["torch"] == "0.1, 0.2"
    assert with_others(new, joined) == joined


def test_a_run_that_diverged_ends_and_says_so(clone: Path, capsys: pytest.CaptureFixture[str]):
    short = ["--set", "run.epochs=2", "model.hidden=2", "sweep.seeds=[0]", "batching.streams=2", "optimizer.lr=1e38"]
    assert main(["reproduce", "long-memory", "--cells", "lag60-bptt-20", *short]) == 0
    assert "| lag60-bptt-20 | 60 | 0 of 1 | 0 | 0.1667 | *diverged* | 25 |" in capsys.readouterr().out

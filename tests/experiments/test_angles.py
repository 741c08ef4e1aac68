"""Angles between gradients, where the answer is known."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import small

import tpdist
from tpdist.errors import TpdistError
from tpdist.experiments.angles import angles, main


@pytest.fixture(scope="module")
def run(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("angles") / "run"
    config = small(small_corpus, method={"name": "bptt"}, batching={"streams": 2, "blocks": 4}, run={"epochs": 3})
    tpdist.train(config, out)
    return out


def test_held_steps_of_one_over_lambda_are_costate_sweeps(run: Path):
    found = angles(run, [], weight=0.5, windows=2)
    # 5 steps reach beyond the window's 3 boundaries: the gradient of BPTT through all of it
    assert found["5 H-steps, plain, 1/λ, held"] == pytest.approx([1.0, 1.0], abs=1e-12)
    cut, one, two = (
        sum(found[name]) / 2
        for name in ("no H-steps, truncated BPTT", "1 H-step, plain, 1/λ, held", "2 H-steps, plain, 1/λ, held")
    )
    assert cut < one < two < 1
    # moving the start too leaves something else
    assert all(abs(value - 1) > 1e-4 for value in found["5 H-steps, plain, 1/λ, tied"])


def test_the_reference_goes_through_the_whole_window_whatever_sweeps_the_run_took(small_corpus: Path, tmp_path: Path):
    method = {"name": "costate", "sweeps": 0}
    config = small(small_corpus, method=method, batching={"streams": 2, "blocks": 4}, run={"epochs": 1})
    tpdist.train(config, tmp_path / "run")
    found = angles(tmp_path / "run", [], weight=0.5, windows=1)
    assert found["5 H-steps, plain, 1/λ, held"] == pytest.approx([1.0], abs=1e-12)
    assert found["no H-steps, truncated BPTT"][0] < 1 - 1e-6


def test_nothing_of_the_run_is_changed(run: Path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    angles(run, ["batching.blocks=3"], weight=1.0, windows=1)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_program_looks_at_the_chosen_runs_and_keeps_its_commands(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = small(small_corpus, method={"name": "bptt"}, run={"epochs": 1})
    rows = []
    for point, chosen in (("a", True), ("b", False)):
        tpdist.train(config, tmp_path / "points" / point)
        rows.append({"point": point, "arm": "bptt", "state": "done", "set.x": point, "valid_perplexity": 2.0})
        rows[-1]["chosen"] = chosen
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    file = tmp_path / "kept.json"
    for weight in (["--weight", "0.5"], []):
        monkeypatch.setattr("sys.argv", ["angles", str(tmp_path), "--json", str(file), "--windows", "1", *weight])
        main()
        if weight:  # the first column is another machine's
            file.write_text(json.dumps(json.loads(file.read_text()) | {"versions": {"torch": "0.1"}}))
    kept = json.loads(file.read_text())
    assert kept["versions"]["torch"] == f"0.1, {torch.__version__}"
    assert list(kept["cosines"]) == ["B = 4, λ = 0.5", "B = 4, λ = 1"]
    assert all(len(values) == 1 for column in kept["cosines"].values() for values in column.values())
    assert kept["command"].count("python -m tpdist.experiments.angles") == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--weight 0", "--weight: must be a finite number above 0, got 0.0"),
        ("--windows 0", "--windows: must be at least 1, got 0"),
        ("--json taken.json", "taken.json: is not what this program writes; give --json another name"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    options: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.json").write_text("[]")
    monkeypatch.setattr("sys.argv", ["angles", "nowhere", *options.split()])
    with pytest.raises(TpdistError, match=said):
        main()

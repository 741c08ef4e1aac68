"""Training loss against θ-steps, from logs that are written out here."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tpdist.errors import TpdistError
from tpdist.experiments.markdown import table
from tpdist.experiments.thetasteps import losses, theta_steps

ROWS = [  # running means of an epoch: 4.0 for the first hundred updates, then 3.0, then 2.0; 1.0 in the second epoch
    {"kind": "step", "epoch": 1, "step": 50, "loss": None},  # these were skipped
    {"kind": "step", "epoch": 1, "step": 100, "loss": 4.0},
    {"kind": "step", "epoch": 1, "step": 200, "loss": 3.5},
    {"kind": "epoch", "epoch": 1, "step": 250, "loss": 3.2},
    {"kind": "step", "epoch": 2, "step": 300, "loss": 1.0},
    {"kind": "workers", "epoch": 2, "step": 300},
    {"kind": "step", "epoch": 2, "step": 400, "loss": 1.0},
]


def test_losses_are_those_since_the_row_before():
    assert losses(ROWS) == pytest.approx({100: 4.0, 200: 3.0, 250: 2.0, 300: 1.0, 400: 1.0})


def test_the_chosen_settings_seeds_stand_together_and_runs_that_go_on_are_left_out(tmp_path: Path):
    rows = []
    for name, seed, state, lr in (
        ("h1-seed0-ab12", 0, "done", 0.1), ("h1-seed1-cd34", 1, "done", 0.1), ("h1-seed2-ef56", 2, "waiting", 0.1),
        ("h1-seed0-0123", 0, "done", 0.2),
    ):  # fmt: skip
        run = tmp_path / "points" / name
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        reached = {"valid_perplexity": 7.0 if state == "done" else None, "chosen": lr == 0.1}
        rows.append({"point": name, "arm": "h1", "seed": seed, "state": state, "set.optimizer.lr": lr, **reached})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    found = theta_steps(tmp_path, [100, 400])
    assert found["theta_steps"] == {"h1": {"seeds": [0, 1], "losses": {"100": [4.0, 4.0], "400": [1.0, 1.0]}}}
    assert found["command"] == f"python -m tpdist.experiments.thetasteps {tmp_path} --steps 100 400"
    assert table(found).splitlines() == [
        "| θ-steps | 100 | 400 | seeds |",
        "| --- | --- | --- | --- |",
        "| h1 | 4.000 ± 0.000 | 1.000 ± 0.000 | 0, 1 |",
    ]
    with pytest.raises(TpdistError, match="logged no loss at θ-step 150; choose 100, 200"):
        theta_steps(tmp_path, [150])


def test_a_directory_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(TpdistError, match=r"results.parquet: is not there: run the sweep first"):
        theta_steps(tmp_path)
    waiting = {"point": "a-seed0-1", "arm": "a", "seed": 0, "state": "waiting", "valid_perplexity": None}
    pq.write_table(pa.Table.from_pylist([waiting]), tmp_path / "results.parquet")
    with pytest.raises(TpdistError, match="no run of the sweep has ended"):
        theta_steps(tmp_path)


def test_as_a_program_it_says_so_in_one_line(tmp_path: Path):
    command = [sys.executable, "-m", "tpdist.experiments.thetasteps", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tpdist: {tmp_path}/results.parquet: is not there: run the sweep first\n"

"""An interrupted run that is resumed is the uninterrupted run, to the bit."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from small_runs import (
    Listener,
    Parts,
    assert_same_runs,
    control_c,
    during_evaluation,
    interrupted,
    rows,
    small,
    stop_at,
)

import tpdist
from tpdist import RunError
from tpdist.data import Store
from tpdist.training.kept_model import KeptModel
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import Regroup, StopSignal
from tpdist.training.trainer import Trainer
from tpdist.training.worker import run_worker

PERSISTENT = {"first": "persistent", "relaxation": 1}
ALS: dict[str, Parts] = {
    "method": {"name": "als"},
    "model": {"cell": "elman", "activation": "identity"},
    "objective": {"block": 1, "loss_on": "target"},
    "batching": {"blocks": 12},
}
CASES: dict[str, dict[str, Parts]] = {
    "bptt": {"method": {"name": "bptt"}, "optimizer": {"name": "sgd", "lr": 1.0, "options": {"momentum": 0.9}}},
    "pm": {"method": {"name": "pm", "h_steps": 2, "starts": "tied", "h_optimizer": {"name": "adagrad", "lr": 0.1}}},
    "admm": {"optimizer": {"name": "adagrad", "lr": 0.1}, "method": {"h_optimizer": {"name": "adam", "lr": 0.05}}},
    "admm, persistent, H by Adam": {"method": {**PERSISTENT, "h_optimizer": {"name": "adam", "lr": 0.05}}},
    "admm, persistent, H by Adagrad": {"method": {**PERSISTENT, "h_optimizer": {"name": "adagrad", "lr": 0.05}}},
    "admm, shuffled": {"method": PERSISTENT, "batching": {"order": "shuffled"}},
    "admm, shuffled, H by NAdam": {
        "method": {**PERSISTENT, "starts": "tied", "h_optimizer": {"name": "nadam", "lr": 0.05}},
        "batching": {"order": "shuffled"},
        "model": {"cell": "lstm", "layers": 2},
    },
    "batch mode": {"method": PERSISTENT, "batching": {"mode": "batch"}, "run": {"epochs": 9}},
    "alm": {"method": {"name": "alm", "theta_steps": 2, **PERSISTENT}},
    "costate": {"method": {"name": "costate", "sweeps": 1, "keep_costates": True, **PERSISTENT}},
    "costate, kept at the edge": {
        "method": {"name": "costate", "sweeps": 0, "edge_costate": "kept", **PERSISTENT},
        "batching": {"order": "shuffled"},
    },
    "als": ALS,
    "als, persistent": {**ALS, "method": {"name": "als", **PERSISTENT}},
    "lambda grows, late duals": {"objective": {"weight_growth": 3.0}, "method": {"dual": {"start_epoch": 2}}},
    "closing, free edge": {
        "method": {"closing": True, "edge_free": True, "starts": "tied", "h_optimizer": {"lr": 0.1}},
        "model": {"tied": True, "embedding": 6},
    },
    "NAdam in float64": {"optimizer": {"name": "nadam"}, "run": {"dtype": "float64"}},
    "ASGD in float64": {"optimizer": {"name": "asgd"}, "run": {"dtype": "float64"}},
    "bfloat16": {"run": {"dtype": "bfloat16", "deterministic": True}},
    "bfloat16, LSTM": {"run": {"dtype": "bfloat16"}, "model": {"cell": "lstm", "layers": 2}},
    "decay and patience": {
        "optimizer": {"lr": 0.5, "decay": {"factor": 0.5, "patience": 0}},
        "run": {"patience": 2, "epochs": 9},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_every_method_resumes_to_the_same_bits(case: str, small_corpus: Path, tmp_path: Path):
    config = small(small_corpus, **CASES[case])
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    tpdist.train(config, whole)
    message = interrupted(lambda: tpdist.train(config, parted, stop_at(3)))
    assert message == f"stopped at step 3; saved. Continue with: tpdist train --resume {parted}"
    interrupted(lambda: tpdist.resume(parted, reporter=stop_at(8)))
    assert [row["step"] for row in rows(parted, "step")] == [2, 4, 6, 8]
    tpdist.resume(parted)
    assert_same_runs(whole, parted)


@pytest.mark.parametrize("step", [1, 9, 10, 17, 18])
def test_any_update_may_be_the_last_before_the_interruption(step: int, small_corpus: Path, tmp_path: Path):
    config = small(small_corpus, run={"checkpoint_every": 3})
    tpdist.train(config, tmp_path / "whole")
    interrupted(lambda: tpdist.train(config, tmp_path / "parted", stop_at(step)))
    tpdist.resume(tmp_path / "parted")
    assert_same_runs(tmp_path / "whole", tmp_path / "parted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_are_as_good_as_control_c(number: signal.Signals, small_corpus: Path, tmp_path: Path):
    """What a cluster sends before it takes a machine away, and a terminal that is closed."""
    ours = signal.signal(number, signal.SIG_DFL)  # the tests may run below nohup
    listener = Listener({4: lambda: signal.raise_signal(number)})
    try:
        said = interrupted(lambda: tpdist.train(small(small_corpus), tmp_path / "run", listener))
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, ours)
    assert "stopped at step 4; saved" in said


def test_what_nohup_ignores_stays_ignored(small_corpus: Path, tmp_path: Path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        listener = Listener({4: lambda: signal.raise_signal(signal.SIGHUP)})
        assert tpdist.train(small(small_corpus), tmp_path / "run", listener).steps == 18
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [1, 2])
def test_an_interruption_of_the_evaluation(number: int, small_corpus: Path, tmp_path: Path, monkeypatch):
    config = small(small_corpus, run={"checkpoint_every": 9})
    tpdist.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        during_evaluation(patch, number)
        message = interrupted(lambda: tpdist.train(config, tmp_path / "parted"))
    assert f"stopped at step {9 * number}; saved" in message
    tpdist.resume(tmp_path / "parted")
    assert_same_runs(tmp_path / "whole", tmp_path / "parted")


def test_an_interruption_of_the_test_evaluation(small_corpus: Path, tmp_path: Path, monkeypatch):
    config, run = small(small_corpus), tmp_path / "run"
    tpdist.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        during_evaluation(patch, 3)
        message = interrupted(lambda: tpdist.train(config, run))
    assert message == f"stopped before the result was written. Continue with: tpdist train --resume {run}"
    assert not (run / "result.json").exists()
    tpdist.resume(run)
    assert_same_runs(tmp_path / "whole", run)


class KilledError(Exception):
    """Stands for kill -9."""


def killed() -> None:
    raise KilledError


@pytest.mark.parametrize("step", [4, 13])
def test_a_kill_falls_back_to_the_periodic_checkpoint(step: int, small_corpus: Path, tmp_path: Path):
    config, run = small(small_corpus, run={"checkpoint_every": 3, "log_every": 1}), tmp_path / "run"
    tpdist.train(config, tmp_path / "whole")
    with pytest.raises(KilledError):
        tpdist.train(config, run, Listener({step: killed}))
    (run / ".config.yaml.99.tmp").write_text("torn")
    (run / "models/.tmpyYQ2Tu").write_text("torn, by safetensors")
    (run / "checkpoints/.step-00000099.99.tmp").mkdir()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "epo')
    listener = Listener()
    tpdist.resume(run, reporter=listener)
    assert f"resumed at step {step - step % 3}, epoch" in listener.text
    assert not list(run.rglob(".*tmp*"))
    assert_same_runs(tmp_path / "whole", run)


@pytest.mark.parametrize(("owner", "where"), [(KeptModel, "save"), (Trainer, "save_checkpoint")])
def test_a_kill_after_the_row_of_an_epoch_writes_it_once(
    owner: type, where: str, small_corpus: Path, tmp_path: Path, monkeypatch
):
    config, run = small(small_corpus, run={"checkpoint_every": 9}), tmp_path / "run"
    tpdist.train(config, tmp_path / "whole")
    original = getattr(owner, where)

    def dies(self: Any, *arguments: Any) -> None:
        lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        if any(line["kind"] == "epoch" for line in lines):
            raise KilledError
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, dies)
        with pytest.raises(KilledError):
            tpdist.train(config, run)
    tpdist.resume(run)
    assert [row["epoch"] for row in rows(run, "epoch")] == [1, 2]
    assert_same_runs(tmp_path / "whole", run)


def test_a_second_control_c_leaves_at_once(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    listener = Listener({5: lambda: (control_c(), control_c())})
    message = interrupted(lambda: tpdist.train(small(small_corpus, run={"checkpoint_every": 2}), run, listener))
    go_on = f"Continue with: tpdist train --resume {run}"
    assert message == f"stopped at once; the checkpoint step-00000004 is whole. {go_on}"
    assert listener.closed
    tpdist.resume(run)


def test_a_second_control_c_before_the_first_checkpoint(small_corpus: Path, tmp_path: Path):
    listener = Listener({2: lambda: (control_c(), control_c())})
    message = interrupted(lambda: tpdist.train(small(small_corpus), tmp_path / "run", listener))
    said = "stopped at once; there is no checkpoint yet: start the run again, with a new --run-dir: "
    assert message == f"{said}{tmp_path / 'run'} stays as it is"
    with pytest.raises(RunError, match=r"no checkpoint to resume from \(there is none\); start a new run"):
        tpdist.resume(tmp_path / "run")


def test_a_run_comes_back_at_an_epochs_end_and_goes_on_to_the_same_bits(small_corpus: Path, tmp_path: Path):
    config = small(small_corpus, run={"epochs": 3})
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    tpdist.train(config, whole)
    run, stop = RunDirectory.create(config, parted), StopSignal()

    def ask() -> None:
        stop.at_epoch_end = True

    with pytest.raises(Regroup):
        run_worker(config, Store.open(small_corpus), run, Listener({4: ask}), False, stop=stop)
    assert [row["epoch"] for row in rows(parted, "epoch")] == [1]
    tpdist.resume(parted)
    assert_same_runs(whole, parted)


def test_a_run_keeps_the_dtype_of_its_parameters(small_corpus: Path, tmp_path: Path):
    run = tmp_path / "run"
    tpdist.train(small(small_corpus, run={"epochs": 1}), run)
    with pytest.raises(RunError, match=r"is of float32, where run\.dtype is float64: leave it as it was"):
        tpdist.resume(run, ["run.epochs=2", "run.dtype=float64"])
    assert tpdist.resume(run, ["run.epochs=2", "run.dtype=bfloat16"]).epochs == 2  # of which float32 holds the sums

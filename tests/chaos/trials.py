"""One trial: a run in which a worker is killed, beside the same run undisturbed. Helpers of the tests beside it."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGSTOP, Signals
from typing import Any

import psutil
import torch
from safetensors.torch import load_file
from small_runs import Listener, list_checkpoints, rows

import tpdist
from tpdist.config import Experiment
from tpdist.training.result import Result

WORKERS = 3
PHASES = (
    "first H", "H-step send", "H-step receive", "dual update", "backward", "all-reduce", "optimiser step", "evaluation",
)  # fmt: skip
SOURCE = {"types": 12, "states": 4, "branching": 2, "tokens": 311}
UPDATES = 5  # an epoch's
EVERY = 2  # updates between checkpoints


def experiment(store: Path, epochs: int = 2, **cluster: Any) -> Experiment:
    """ADMM over three workers along time, with states and duals that last, and Adam on both θ and H."""
    return Experiment.model_validate(
        {
            "data": {"recipe": "synthetic", "synthetic": SOURCE, "store": str(store)},
            "model": {"hidden": 4, "init": 0.5, "cell": "chaos_cells:Gru", "allow_cells_from": ["chaos_cells"]},
            "objective": {"block": 5, "weight": 0.3},
            "batching": {"streams": 2, "blocks": 7},
            "method": {
                "name": "admm", "h_steps": 2, "first": "persistent", "starts": "tied",
                "h_optimizer": {"name": "adam", "lr": 0.05},
            },
            "optimizer": {"lr": 0.02, "clip": 0.3},
            "run": {"dtype": "float64", "epochs": epochs, "device": "cpu", "checkpoint_every": EVERY, "log_every": 2},
            "cluster": {"workers": WORKERS, "mesh": [1, WORKERS], **cluster},
        }
    )  # fmt: skip


@dataclass
class Chaos:
    """home: `$TPDIST_CHAOS`. reference: the run that nobody disturbed, whose file operations are listed in `home`."""

    home: Path
    store: Path
    reference: Path


@dataclass(frozen=True)
class Trial:
    """Worker `rank` gets `signal` in `phase` of update `step`, or before its file operation number `step`.

    raises: it gets no signal, but an error: `own`, or `disk`. pace: seconds that every update takes longer.
    """

    phase: str | None
    rank: int = 0
    step: int = 3
    signal: Signals = SIGKILL
    raises: str | None = None
    pace: float = 0.0

    def __str__(self) -> str:
        return f"{self.phase} {self.step}, worker {self.rank}, {self.raises or self.signal.name}"


def run_trial(
    trial: Trial, home: Path, store: Path, run: Path, epochs: int = 2, listener: Listener | None = None, **cluster: Any
) -> tuple[Result, Listener]:
    """home: `$TPDIST_CHAOS`. A worker that is stopped is given as short a time as a busy machine allows."""
    (home / "plan.json").write_text(json.dumps(vars(trial)))
    (home / "token").touch()
    listener = listener or Listener()
    cluster = {"heartbeat_s": 6.0 if trial.signal == SIGSTOP else 30.0, **cluster}
    result = tpdist.train(experiment(store, epochs, **cluster), run, listener)
    if trial.phase is not None:
        assert not (home / "token").exists(), f"{trial}: the phase was never passed"
    return result, listener


def worker_processes(home: Path) -> list[int]:
    """Of the Ray that was started with this `$TPDIST_CHAOS`, and of no other on this machine."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith("ray::SpanActor") and process.environ().get("TPDIST_CHAOS") == str(home):
                found.append(process.pid)
    return found


def assert_undisturbed(run: Path, reference: Path) -> None:
    """Every bit of θ, H, U and the optimisers, every row: as if nothing had happened."""
    newest, wanted = (list_checkpoints(one / "checkpoints")[-1] for one in (run, reference))
    assert newest.name == wanted.name
    files = sorted(path.name for path in wanted.glob("*.safetensors"))
    assert sorted(path.name for path in newest.glob("*.safetensors")) == files
    names = set()
    for file in files:
        got, want = load_file(newest / file), load_file(wanted / file)
        assert got.keys() == want.keys()
        names |= want.keys()
        for name, tensor in want.items():
            assert torch.equal(got[name], tensor), f"{file}: {name}"
    assert {"boundaries.h", "boundaries.u"} <= names
    for model in ("best", "last"):
        assert (run / f"models/{model}.safetensors").read_bytes() == (
            reference / f"models/{model}.safetensors"
        ).read_bytes()
    assert rows(run) == rows(reference)


def checkpoint_operations(home: Path, begins: str, ends: str) -> list[Trial]:
    """A trial for every file operation of every worker, from the first on checkpoint `begins` to that on `ends`."""
    trials = []
    for rank in range(WORKERS):
        operations = (home / f"operations-{rank}").read_text().splitlines()
        first, last = (next(i for i, line in enumerate(operations) if name in line) for name in (begins, ends))
        trials += [Trial("checkpoint", rank, number + 1) for number in range(first, last)]
    return trials

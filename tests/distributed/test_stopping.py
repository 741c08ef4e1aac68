"""Workers of which one is told to stop: all leave after the same update, with one checkpoint, and can go on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mesh_runs import experiment
from small_runs import rows, tensors

from tpdist import Interrupted
from tpdist.config import Experiment
from tpdist.data import Store, prepare
from tpdist.parallel import Workers
from tpdist.testing import run_ranks
from tpdist.training import evaluation, figures, trainer
from tpdist.training.progress import Silent, Status
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import StopSignal
from tpdist.training.worker import run_worker

UPDATES = 5  # of an epoch


def config_of(store: str) -> Experiment:
    parts = {"cluster": {"workers": 2, "mesh": [1, 2]}, "run": {"epochs": 2, "on_non_finite": "skip"}}
    return experiment(store, parts)


class _Stops(Silent):
    """Tells this worker to stop after an update."""

    def __init__(self, stop: StopSignal, after: int | None):
        self.stop, self.after = stop, after

    def step(self, status: Status) -> None:
        self.stop.received = self.stop.received or status.step == self.after


def _train(store: str, run: str, after: int | None, skipped: int | None, resume: bool = False) -> str:
    """after: the update after which the second worker is told to stop, 0: before the first. skipped: one that fails."""
    workers, stop = Workers.join((1, 2), torch.device("cpu")), StopSignal()
    told = after if workers.rank == 1 else None
    stop.received = told == 0

    def counted(at: trainer.Trainer, batch: Any, outcome: Any, began: float) -> None:
        if at.state.step + 1 == skipped:
            outcome.loss.fill_(torch.nan)
        figures.count_update(at, batch, outcome, began)

    trainer.count_update, evaluation.STEPS = counted, 5  # so that every worker evaluates a piece
    config, home, cpu = config_of(store), RunDirectory(Path(run)), torch.device("cpu")
    stops = _Stops(stop, told)
    try:
        run_worker(config, Store.open(store), home, stops, resume, workers, stop, cpu, recoveries=0)
    except Interrupted as error:
        return str(error)
    return "finished"


@pytest.fixture
def store(tmp_path: Path) -> str:
    prepare(config_of("store").data, tmp_path / "store")
    return str(tmp_path / "store")


def started(store: str, run: Path) -> str:
    RunDirectory.create(config_of(store), run)
    return str(run)


@pytest.mark.parametrize(
    ("after", "skipped", "last"),
    [
        (0, None, 1),
        (2, 3, 3),  # the figures of an update that is left out tell the others, too
        (UPDATES - 1, None, UPDATES),  # the evaluation sees it first
    ],
)
def test_all_leave_after_the_same_update(after: int, skipped: int | None, last: int, store: str, tmp_path: Path):
    run = started(store, tmp_path / "run")
    for said in run_ranks(_train, 2, store, run, after, skipped):
        assert said == f"stopped at step {last}; saved. Continue with: tpdist train --resume {run}"
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [f"step-{last:08d}"]


def test_the_run_goes_on_as_if_nothing_had_been(store: str, tmp_path: Path):
    whole, parted = (started(store, tmp_path / name) for name in ("whole", "parted"))
    assert run_ranks(_train, 2, store, whole, None, None) == ["finished"] * 2
    for said in run_ranks(_train, 2, store, parted, UPDATES + 1, None):
        assert f"stopped at step {UPDATES + 2};" in said
    assert run_ranks(_train, 2, store, parted, None, None, True) == ["finished"] * 2
    one, other = tensors(Path(whole)), tensors(Path(parted))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert rows(Path(whole)) == rows(Path(parted))

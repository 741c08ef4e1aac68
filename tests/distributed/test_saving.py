"""Workers that cannot write, or that are slow to: nobody waits for ever, and nothing that was promised is lost."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mesh_runs import experiment

from tpdist import RunError
from tpdist.config import Experiment
from tpdist.data import Store, prepare
from tpdist.parallel import Workers
from tpdist.testing import run_ranks
from tpdist.training import writer
from tpdist.training.progress import Silent, Status
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import Regroup, StopSignal
from tpdist.training.worker import run_worker

TWO = {"workers": 2, "mesh": [1, 2]}


def _run(config: Experiment, store: str, run: str, reporter: Silent, stop: StopSignal) -> str:
    workers = Workers.join(config.mesh(), torch.device("cpu"))
    home = RunDirectory(Path(run))
    try:
        run_worker(config, Store.open(store), home, reporter, False, workers, stop, torch.device("cpu"), recoveries=0)
    except (RunError, Regroup) as error:
        return f"{type(error).__name__}: {error}"
    return "finished"


def _unshared(store: str, run: str) -> str:
    """Every worker has a place of its own for checkpoints."""
    places = {"checkpoint_to": f"{run}-{dist.get_rank()}", "epochs": 1}
    config = experiment(store, {"cluster": TWO, "run": places})
    return _run(config, store, run, Silent(), StopSignal())


class _AsksToRegroup(Silent):
    def __init__(self, stop: StopSignal):
        self.stop = stop

    def step(self, status: Status) -> None:
        self.stop.at_epoch_end = True


def _regroup(store: str, run: str) -> tuple[str, list[str]]:
    """The second worker's disk is slower than the others will wait for one that has failed."""
    if dist.get_rank() == 1:
        save = writer.save_tensors
        writer.save_tensors = lambda tensors, path: (time.sleep(writer.GRACE_S + 1), save(tensors, path))
    stop = StopSignal()
    said = _run(experiment(store, {"cluster": TWO, "run": {"epochs": 5}}), store, run, _AsksToRegroup(stop), stop)
    dist.barrier()
    return said, sorted(path.name for path in (Path(run) / "checkpoints").iterdir())


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[str, str]:
    store, run = tmp_path / "store", tmp_path / "run"
    config = experiment(store, {"cluster": TWO})
    prepare(config.data, store)
    RunDirectory.create(config, run)
    return str(store), str(run)


@pytest.mark.timeout(60)
def test_a_worker_that_cannot_write_ends_the_wait_for_the_last_checkpoint(prepared: tuple[str, str]):
    leader, follower = run_ranks(_unshared, 2, *prepared)
    assert "run-1" in follower
    assert "not there; on several machines the run directory must lie where every worker sees it" in follower
    assert "not every worker wrote its part" in leader


@pytest.mark.timeout(60)
def test_a_new_group_goes_on_from_the_epoch_that_has_ended(prepared: tuple[str, str]):
    for said, checkpoints in run_ranks(_regroup, 2, *prepared):
        assert said.startswith("Regroup")
        assert len(checkpoints) == 1
        assert checkpoints[0].endswith("-epoch")

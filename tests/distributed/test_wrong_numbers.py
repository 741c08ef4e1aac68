"""On three workers: all leave the same update out; the one whose θ differs is found."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mesh_runs import experiment

from tpdist import NonFiniteError
from tpdist.data import Store
from tpdist.errors import WorkersDifferError
from tpdist.parallel import Workers
from tpdist.testing import run_ranks
from tpdist.training.diagnosis import compare_workers
from tpdist.training.progress import Silent
from tpdist.training.run_dir import RunDirectory
from tpdist.training.trainer import Trainer


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def on_a_rank(store: str, run: str, mode: str) -> dict[str, Any]:
    """Two updates; then worker 1's state of block 18 is lost; in mode skip, one more; then worker 2's θ is altered."""
    parts = {
        "method": {"name": "admm", "first": "persistent", "relaxation": 0, "starts": "tied"},
        "run": {"on_non_finite": mode},
        "cluster": {"workers": 3, "mesh": [1, 3]},
    }
    config, heard = experiment(store, parts), Heard()
    workers = Workers.join(config.mesh(), torch.device("cpu"), None)
    trainer = Trainer(config, Store.open(store), RunDirectory(Path(run)), heard, workers)
    trainer._begin_epoch()
    batches = list(trainer.batches.epoch(1))
    for batch in batches[:2]:
        trainer.update(batch)
    assert trainer.boundaries.h is not None
    if dist.get_rank() == 1:  # of window 14 … 20, worker 1 owns 17, 18 (after 14, 15, 16)
        trainer.boundaries.h[1, trainer.batches.slots.index(18), 0] = torch.nan
    before = [p.detach().clone() for p in trainer.theta.parameters]
    found: dict[str, Any] = {}
    try:
        trainer.update(batches[2])
    except NonFiniteError as error:
        found["stopped"] = str(error)
    found["moved"] = not all(torch.equal(p, q) for p, q in zip(trainer.theta.parameters, before, strict=True))
    trainer.update(batches[3])
    compare_workers(workers, trainer.theta.parameters, trainer.state.step)
    if dist.get_rank() == 2:
        trainer.theta.parameters[1].data.view(torch.int64).flatten()[3] ^= 1
    try:
        compare_workers(workers, trainer.theta.parameters, trainer.state.step)
    except WorkersDifferError as error:
        found["differ"] = str(error)
    return found | {"said": heard.said, "state": (trainer.state.step, trainer.state.skipped)}


@pytest.mark.parametrize("mode", ["skip", "stop"])
def test_three_workers_agree(mode: str, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    ranks = run_ranks(on_a_rank, 3, str(corpus), str(tmp_path), mode)
    where = (
        "step 3 (epoch 1, window 3): the gradient of θ has a norm of nan; worker 1 (stream 0, time 1), "
        "block 18 of stream 1: the first value at its start is not finite; "
    )
    for found in ranks:
        assert not found["moved"]
        if mode == "skip":
            assert found["said"] == [f"{where}this update is skipped, 1 so far"]
            assert found["state"] == (4, 1)
        else:
            assert found["stopped"].startswith(f"{where}the last finite values: a mean loss of ")
            assert found["state"] == (3, 0)
        step = found["state"][0]
        assert found["differ"].startswith(f"after step {step}: θ is not the same on all workers (worker 2 (stream 0, ")
        assert "; the others: " in found["differ"]

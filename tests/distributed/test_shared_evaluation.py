"""Workers score runs of a split's pieces, and come to the figure of one that scores it all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mesh_runs import experiment

import tpdist
from tpdist.data import Store, prepare
from tpdist.errors import Interrupted
from tpdist.parallel import Workers
from tpdist.testing import run_ranks
from tpdist.training import epoch_end, evaluation
from tpdist.training.progress import Silent
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import StopSignal
from tpdist.training.worker import run_worker

PARTS = {
    "cluster": {"workers": 3, "mesh": [1, 3]},
    "run": {"epochs": 1},
    "data": {"synthetic": {"types": 12, "states": 4, "branching": 2, "tokens": 6_000}},
}
STEPS = 60  # of a piece: the validation split has several
share = evaluation.share_of_loss


def _train(store: str, run: str, rank: int, what: str, steps: int = STEPS) -> tuple[str, list[float | None]]:
    """rank: the worker to which something happens. steps: of a piece. -> how it ended, this worker's shares."""
    losses: list[float | None] = []
    stop = StopSignal()

    def noted(*arguments, **options) -> evaluation.Share:
        if dist.get_rank() == rank and what == "stop":
            stop.received = True
        found = share(*arguments, **options)
        if dist.get_rank() == rank and what == "cannot":
            found = replace(found, loss=None)
        losses.append(found.loss)
        return found

    evaluation.STEPS, epoch_end.share_of_loss = steps, noted
    config = experiment(store, PARTS)
    workers = Workers.join(config.mesh(), torch.device("cpu"))
    home, place = RunDirectory(Path(run)), torch.device("cpu")
    try:
        run_worker(config, Store.open(store), home, Silent(), False, workers, stop, place, recoveries=0)
    except Interrupted as error:
        return str(error), losses
    return "finished", losses


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[str, str]:
    store, run = tmp_path / "store", tmp_path / "run"
    config = experiment(store, PARTS)
    prepare(config.data, store)
    RunDirectory.create(config, run)
    return str(store), str(run)


@pytest.mark.parametrize("what", ["nothing", "cannot"])
def test_the_figure_is_that_of_one_worker(what: str, prepared: tuple[str, str]):
    """Shared by all, or by the leader alone where a worker cannot have its part: of validation, then of the test."""
    ended = run_ranks(_train, 3, *prepared, 1, what)
    assert [how for how, _ in ended] == ["finished"] * 3
    shares = [found for _, found in ended]
    for split in (0, 1):
        assert [found[split] is None for found in shares] == [False, what == "cannot", False]
    assert all(len(found) == 2 and all(loss is None or loss > 0 for loss in found) for found in shares)
    row = next(row for row in map(json.loads, (Path(prepared[1]) / "metrics.jsonl").open()) if row["kind"] == "epoch")
    assert row["valid_loss"] == pytest.approx(tpdist.evaluate(prepared[1]).loss, rel=1e-10)
    result = json.loads((Path(prepared[1]) / "result.json").read_text())
    assert result["test_perplexity"] == pytest.approx(tpdist.evaluate(prepared[1], "test").perplexity, rel=1e-10)


@pytest.mark.parametrize(("rank", "steps"), [(2, STEPS), (0, 10_000)], ids=["with pieces", "without"])
def test_one_that_is_told_to_stop_meanwhile_stops_all(rank: int, steps: int, prepared: tuple[str, str]):
    """Also one that has nothing to do, since all of the split is one piece."""
    for how, _ in run_ranks(_train, 3, *prepared, rank, "stop", steps):
        assert "stopped" in how

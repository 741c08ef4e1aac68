"""What workers that draw windows of their own spans hand each other at an epoch's end."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tpdist.parallel import Workers
from tpdist.testing import run_ranks
from tpdist.tprop import Boundaries
from tpdist.training.epoch_end import hand_on

S, D, SPANS = 2, 3, [4, 3, 5]


def values(rank: int, kind: int) -> Tensor:
    """[S, n+1, D], no number twice."""
    count = S * (SPANS[rank] + 1) * D
    return torch.arange(count).reshape(S, -1, D) + 1000.0 * rank + 10_000.0 * kind


def after_an_epoch(edge_costate: bool) -> dict[str, Tensor | int]:
    workers = Workers.join((1, len(SPANS)), torch.device("cpu"), None)
    own = Boundaries(h=values(workers.rank, 0), costate=values(workers.rank, 1))
    trainer = SimpleNamespace(
        boundaries=own, workers=workers, batches=SimpleNamespace(own_windows=True),
        plan=SimpleNamespace(edge_costate=edge_costate),
    )  # fmt: skip
    hand_on(trainer)  # type: ignore[arg-type]
    return {**own.tensors(), "exchange": workers.traffic.exchange, "carried": workers.traffic.carried}


@pytest.mark.parametrize("edge_costate", [True, False])
def test_states_go_to_the_right_and_costates_at_the_edge_to_the_left(edge_costate: bool) -> None:
    found = run_ranks(after_an_epoch, len(SPANS), edge_costate)
    for rank, got in enumerate(found):
        h, costate = values(rank, 0), values(rank, 1)
        if rank:
            h[:, 0] = values(rank - 1, 0)[:, -1]
        if edge_costate and rank < len(SPANS) - 1:
            costate[:, -1] = values(rank + 1, 1)[:, 0]
        assert torch.equal(got["h"], h)
        assert torch.equal(got["costate"], costate)
        sent = (rank < len(SPANS) - 1) + (edge_costate and rank > 0)
        assert (got["exchange"], got["carried"]) == (0, sent * S * D * 4)

"""What a worker hands to torch.distributed for its neighbours, and as what it counts it."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tpdist.parallel import Traffic
from tpdist.parallel.exchange import TimeNeighbours

BYTES = 2 * 3 * 8


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Tensor, int]]:
    """Send or receive, what, to or from whom; on the second of three workers."""
    found: list[tuple[str, Tensor, int]] = []
    monkeypatch.setattr(dist, "get_rank", lambda group: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)
    monkeypatch.setattr(dist, "get_backend", lambda group: "gloo")
    monkeypatch.setattr(dist, "P2POp", lambda kind, tensor, group, group_peer: (kind.__name__, tensor, group_peer))
    monkeypatch.setattr(dist, "batch_isend_irecv", lambda operations: found.extend(operations) or [])
    return found


def neighbours() -> TimeNeighbours:
    group: Any = None
    return TimeNeighbours(group, Traffic())


@pytest.mark.parametrize("streams", [1, 2])  # whose edge is one piece of memory, or not
@pytest.mark.parametrize(("call", "to", "source"), [("to_right", 2, 0), ("to_left", 0, 2)])
def test_a_message_under_way_does_not_change(call: str, to: int, source: int, streams: int, asked: list) -> None:
    states = torch.rand(streams, 5, 3).double()
    edge = states[:, 4].clone()
    getattr(neighbours(), call)(states[:, 4])
    states.zero_()
    (kind, sent, receiver), (other, into, sender) = asked
    assert (kind, receiver, other, sender) == ("isend", to, "irecv", source)
    assert torch.equal(sent, edge)
    assert sent.is_contiguous()
    assert (into.shape, into.dtype) == (edge.shape, edge.dtype)


def test_what_no_visit_waits_for_is_counted_apart(asked: list) -> None:
    worker, edge = neighbours(), torch.rand(2, 3).double()
    worker.to_right(edge)()
    for send in (worker.hand_on, worker.hand_back):
        send(edge)
    assert (worker._traffic.exchange, worker._traffic.carried) == (BYTES, 2 * BYTES)
    last = worker.among(2)
    assert (last.is_first, last.is_last) == (False, True)
    assert [to for kind, _, to in asked if kind == "isend"] == [2, 2, 0]

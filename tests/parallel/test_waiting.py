"""How long a worker waits: by the host's clock, and where a stream waits by the stream's events."""

import pytest
import torch
import torch.distributed as dist

from tpdist.parallel import Traffic


class Event:
    """CUDA's, by hand: `now` is the stream's clock, in milliseconds; what is over `reached` is still to come."""

    now, reached = 0.0, 0.0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return self.at <= Event.reached

    def elapsed_time(self, other: "Event") -> float:
        return other.at - self.at


def test_a_stream_that_waits_is_counted_once_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_backend", lambda group: "nccl")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    traffic = Traffic()
    for name, milliseconds in (("neighbours_s", 250.0), ("reduction_s", 500.0), ("neighbours_s", 1000.0)):
        with traffic.waiting(name, None):  # type: ignore[arg-type]
            Event.now += milliseconds
    assert traffic.figures()["neighbours_s"] == 0.0
    Event.reached = 750.0
    assert traffic.figures() == {
        "exchange": 0, "carried": 0, "gradient": 0, "neighbours_s": 0.25, "reduction_s": 0.5,
    }  # fmt: skip
    Event.reached = 1750.0
    assert traffic.figures()["neighbours_s"] == 1.25
    assert Traffic(**traffic.figures()) == traffic  # as all workers' are added up


def test_a_host_that_waits_is_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_backend", lambda group: "gloo")
    traffic = Traffic()
    with traffic.waiting("reduction_s", None):  # type: ignore[arg-type]
        pass
    assert traffic.reduction_s > 0
    assert traffic.neighbours_s == 0

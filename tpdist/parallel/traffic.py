"""What a worker sends to others, and how long it waits for them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist


@dataclass
class Traffic:
    """Bytes that this worker sent, by what they were, and the seconds that it waited for others.

    exchange: boundary states of visits, at most what ARCHITECTURE.md's table says; `boundary_bytes` of result.json.
    carried: states handed on in order: `forward` first values, the next window's start, what waits at a span's edge.
    gradient: what it adds to the sum of θ's gradient (`als`: of normal equations).
    neighbours_s, reduction_s: waiting for neighbours and for that sum, the transfer itself among it.
    """

    exchange: int = 0
    carried: int = 0
    gradient: int = 0
    neighbours_s: float = 0.0
    reduction_s: float = 0.0

    def __post_init__(self) -> None:
        self._by_stream: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def waiting(self, seconds: str, group: dist.ProcessGroup) -> Iterator[None]:
        """Waiting for messages of `group`, which is added to the field `seconds`.

        Under NCCL it is the device's stream that waits, and not the host: events on it tell how long, later.
        """
        if dist.get_backend(group) != "nccl":
            began = time.perf_counter()
            yield
            setattr(self, seconds, getattr(self, seconds) + time.perf_counter() - began)
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._by_stream.append((seconds, first, last))
        self.settle()

    def settle(self) -> None:
        """Count the waits of streams that are over."""
        while self._by_stream and self._by_stream[0][2].query():
            seconds, first, last = self._by_stream.pop(0)
            setattr(self, seconds, getattr(self, seconds) + first.elapsed_time(last) / 1e3)

    def figures(self) -> dict[str, float]:
        """All of them, as far as they are known."""
        self.settle()
        return asdict(self)

"""Workers in time as threads of one process: the `Neighbours` that a test needs, and a sum over workers."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WAIT_S = 60.0


class Chain:
    """P workers in a row."""

    def __init__(self, workers: int):
        self.workers = workers
        self.rightward = [queue.Queue() for _ in range(workers)]  # what worker p gets from the left
        self.leftward = [queue.Queue() for _ in range(workers)]
        self.barrier = threading.Barrier(workers, timeout=WAIT_S)
        self.shared: list[Any] = [None] * workers

    def sum_over(self, place: int) -> Callable[[Sequence[Tensor]], None]:
        """In-place sum of a list of tensors over all workers, as `als_visit` takes it."""

        def reduce(tensors: Sequence[Tensor]) -> None:
            self.shared[place] = [t.detach().clone() for t in tensors]
            self.barrier.wait()
            sums = [torch.stack(parts).sum(0) for parts in zip(*self.shared, strict=True)]
            self.barrier.wait()
            with torch.no_grad():
                for tensor, total in zip(tensors, sums, strict=True):
                    tensor.copy_(total)

        return reduce

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """`work(place)` on every worker at once -> what each returned; the first error is raised."""
        results: list[Any] = [None] * self.workers
        errors: list[BaseException] = []

        def body(place: int) -> None:
            try:
                results[place] = work(place)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=body, args=(p,), daemon=True) for p in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        assert all(q.empty() for q in self.rightward + self.leftward)  # every message was read
        return results


class SummedOver:
    """The `GradientSum` of one worker of a chain; its calls go among those of the worker's link."""

    def __init__(self, parameters: Sequence[Tensor], reduce: Callable[[Sequence[Tensor]], None], calls: list[str]):
        self.parameters, self.reduce, self.calls = parameters, reduce, calls
        self.armed, self.sent = False, set[int]()
        for p in parameters:
            p.register_post_accumulate_grad_hook(self.send)

    def begin(self, inputs: Tensor | None, tokens: int) -> None:
        self.calls.append("begin")
        self.armed, self.sent = False, set()

    def last_pass(self) -> None:
        assert not self.armed
        self.armed = True

    def send(self, p: Tensor) -> None:
        """As a bucket is sent while the last pass runs: nothing may be added to its gradients later."""
        assert id(p) not in self.sent
        self.sent |= {id(p)} if self.armed else set()

    def finish(self) -> None:
        self.calls.append("finish")
        assert self.armed  # by the update's last pass
        self.reduce([p.grad for p in self.parameters if p.grad is not None])


class Link:
    """The `Neighbours` of one worker of a chain. Counts the numbers that cross its edges, and lists its calls.

    under_way: messages that it has not waited for.
    """

    def __init__(self, chain: Chain, place: int):
        self.chain, self.place = chain, place
        self.is_first = place == 0
        self.is_last = place == chain.workers - 1
        self.sent_right = self.sent_left = self.under_way = 0
        self.calls: list[str] = []

    def to_right(self, edge: Tensor) -> Callable[[], Tensor | None]:
        self.calls.append("to_right")
        if not self.is_last:
            self.sent_right += edge.numel()
            self.chain.rightward[self.place + 1].put(edge.detach().clone())
        return self.arrival(None if self.is_first else self.chain.rightward[self.place])

    def to_left(self, edge: Tensor) -> Callable[[], Tensor | None]:
        self.calls.append("to_left")
        if not self.is_first:
            self.sent_left += edge.numel()
            self.chain.leftward[self.place - 1].put(edge.detach().clone())
        return self.arrival(None if self.is_last else self.chain.leftward[self.place])

    def arrival(self, source: queue.Queue[Tensor] | None) -> Callable[[], Tensor | None]:
        self.under_way += 1

        def wait() -> Tensor | None:
            self.under_way -= 1
            return None if source is None else source.get(timeout=WAIT_S)

        return wait

    def relay(self, start: Tensor, roll: Callable[[Tensor], Tensor]) -> None:
        self.calls.append("relay")
        if not self.is_first:
            start = self.chain.rightward[self.place].get(timeout=WAIT_S)
        end = roll(start)
        if not self.is_last:
            self.chain.rightward[self.place + 1].put(end.detach().clone())

    def around(self, edge: Tensor) -> Tensor:
        self.calls.append("around")
        self.chain.shared[self.place] = edge.detach().clone()
        self.chain.barrier.wait()
        last = self.chain.shared[-1]
        self.chain.barrier.wait()
        return last if self.is_first else edge

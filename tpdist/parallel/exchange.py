"""What neighbours in time tell each other: boundary states, and nothing else.

Every worker of a stream group makes every call, in the same order. Messages between two workers are a few
states of d numbers each, whatever the number of blocks.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from tpdist.parallel.traffic import Traffic


class TimeNeighbours:
    """Neighbours along dimension `time` of the mesh, over their process group.

    Ranks in the group are in the order of the workers' blocks. active: how many of them, from the first, hold blocks of
    the window at hand; the others take no part and make no call.
    """

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic, active: int | None = None):
        self._group, self._traffic = group, traffic
        self._me = dist.get_rank(group)
        self._active = dist.get_world_size(group) if active is None else active
        self._through_host = dist.get_backend(group) == "gloo"  # Gloo sends and receives host memory only

    def among(self, active: int) -> "TimeNeighbours":
        """The same workers in a window that only the first `active` of them hold blocks of."""
        return TimeNeighbours(self._group, self._traffic, active)

    @property
    def is_first(self) -> bool:
        return self._me == 0

    @property
    def is_last(self) -> bool:
        return self._me == self._active - 1

    def to_right(self, edge: Tensor) -> Callable[[], Tensor | None]:
        """Send a state; what is returned waits for the left neighbour's."""
        return self._swap(edge, self._me + 1, self._me - 1)

    def to_left(self, edge: Tensor) -> Callable[[], Tensor | None]:
        """Send a state; what is returned waits for the right neighbour's."""
        return self._swap(edge, self._me - 1, self._me + 1)

    def hand_on(self, edge: Tensor) -> Tensor | None:
        """A state to the right that no visit waits for; the left neighbour's."""
        return self._swap(edge, self._me + 1, self._me - 1, beside_visits=True)()

    def hand_back(self, edge: Tensor) -> Tensor | None:
        """A costate to the left that no visit waits for; the right neighbour's."""
        return self._swap(edge, self._me - 1, self._me + 1, beside_visits=True)()

    def relay(self, start: Tensor, roll: Callable[[Tensor], Tensor]) -> None:
        if not self.is_first:
            start = self._receive(start, self._me - 1)
        end = roll(start)
        if not self.is_last:
            self._send(end, self._me + 1)

    def around(self, edge: Tensor) -> Tensor:
        last = self._active - 1
        if last == 0:
            return edge
        if self._me == last:
            self._send(edge, 0)
        return self._receive(edge, last) if self.is_first else edge

    def _swap(self, edge: Tensor, to: int, source: int, beside_visits: bool = False) -> Callable[[], Tensor | None]:
        """Begin to send and to receive at once, so that no order of workers can lock them; past an end is nobody."""
        operations, out, into = [], self._outgoing(edge), None
        if 0 <= to < self._active:
            operations.append(dist.P2POp(dist.isend, out, group=self._group, group_peer=to))
            if beside_visits:
                self._traffic.carried += out.nbytes
            else:
                self._traffic.exchange += out.nbytes
        if 0 <= source < self._active:
            into = torch.empty_like(out)
            operations.append(dist.P2POp(dist.irecv, into, group=self._group, group_peer=source))
        under_way = dist.batch_isend_irecv(operations) if operations else []

        def arrival() -> Tensor | None:
            with self._traffic.waiting("neighbours_s", self._group):
                for work in under_way:
                    work.wait()
            return None if into is None else into.to(edge.device)

        return arrival

    def _send(self, state: Tensor, to: int) -> None:
        out = self._outgoing(state)
        dist.send(out, group=self._group, group_dst=to)
        self._traffic.carried += out.nbytes

    def _receive(self, like: Tensor, source: int) -> Tensor:
        into = torch.empty_like(self._outgoing(like))
        with self._traffic.waiting("neighbours_s", self._group):
            dist.recv(into, group=self._group, group_src=source)
        return into.to(like.device)

    def _outgoing(self, state: Tensor) -> Tensor:
        state = state.detach()
        if self._through_host and state.device.type != "cpu":
            return state.cpu().contiguous()
        # a copy: what it is a view of may change while the message is under way
        return state.clone(memory_format=torch.contiguous_format)

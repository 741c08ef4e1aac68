"""What one worker holds of one window.

Shape letters, beside those of `tpdist.models.cells`:

    S  streams of this worker      k  blocks of this worker in the window
    n  all blocks of this worker   d  width of a free state

Boundary `i` lies before block `i`; boundary `k` lies after the worker's last block. A tensor over
boundaries has k+1 places, one over blocks has k. Boundary `k` is the right neighbour's boundary 0 (a
copy), the window's closing target, or nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tpdist.models import IGNORED


@dataclass(frozen=True)
class Window:
    """One worker's tokens of one window, and which of its boundaries take part.

    inputs, labels: [B, S, k] ids; a label is IGNORED where no token is.
    coupled: [S, k+1] of 0 and 1, in the states' dtype; 1 where the constraint h_i = ĥ_i exists.
    movable: [S, k+1] bool; where an H-step may move the target.
    earlier: [B, S, e] inputs of the e blocks before the window, for relaxation across its edge.
    tokens: labels of the window over all workers.
    opens: whether the window begins its streams.
    offset: blocks of the window to the left of this worker's.
    constrained, movable_at_all: whether any boundary is coupled, or may move; known without asking the device.
    """

    inputs: Tensor
    labels: Tensor
    coupled: Tensor
    movable: Tensor
    earlier: Tensor
    tokens: int
    opens: bool
    constrained: bool
    movable_at_all: bool
    offset: int

    @property
    def blocks(self) -> int:
        """k."""
        return self.inputs.shape[2]


def make_window(
    inputs: Tensor,
    labels: Tensor,
    dtype: torch.dtype,
    *,
    tokens: int,
    opens: bool,
    edge_free: bool = False,
    closing: bool = False,
    earlier: Tensor | None = None,
    continues: tuple[bool, bool] = (False, False),
    follows: Tensor | None = None,
    offset: int = 0,
) -> Window:
    """A window from its tokens: inputs, labels [B, S, k]; a block without labels has no boundary.

    continues: whether the window goes on to the left and to the right of this worker's blocks. follows: [S] bool,
    the streams in which the right neighbour's first block has labels; by default those whose last block here has.
    A closing target ends the streams whose last block is whole: behind a shorter one a prediction has rolled on through
    padding.
    """
    _, S, k = inputs.shape
    exists = (labels != IGNORED).any(0)
    end = exists.new_zeros(S, 1)
    if continues[1]:
        end = exists[:, -1:] if follows is None else follows[:, None]
    elif closing:
        end = labels[-1, :, -1:] != IGNORED
    coupled = torch.cat([exists if continues[0] else exists & (torch.arange(k, device=exists.device) > 0), end], 1)
    movable = coupled.clone()
    if continues[1]:
        movable[:, -1] = False
    if edge_free and not continues[0]:
        movable[:, 0] = True
    return Window(
        inputs=inputs,
        labels=labels,
        coupled=coupled.to(dtype),
        movable=movable,
        earlier=inputs[:, :, :0] if earlier is None else earlier,
        tokens=tokens,
        opens=opens,
        constrained=k > 1 or closing or any(continues),
        movable_at_all=k > 1 or closing or edge_free or any(continues),
        offset=offset,
    )


# A state under way, None where there is no worker on that side. The call waits for it, and for what was sent: that may
# never leave where nobody waits.
Arrival = Callable[[], Tensor | None]


class Neighbours(Protocol):
    """The workers to the left and right in time. Every call is made by all workers of a stream group, in one order.

    Nothing but boundary states of shape [..., S, d] passes through it. `to_right` and `to_left` return at once, so
    that a worker computes while messages are under way.
    """

    @property
    def is_first(self) -> bool:
        """No worker to the left: boundary 0 is the window's start."""
        ...

    @property
    def is_last(self) -> bool:
        """No worker to the right: boundary k is the window's end."""
        ...

    def to_right(self, edge: Tensor) -> Arrival:
        """Send a state to the right; the left neighbour's arrives, or None on the first worker."""
        ...

    def to_left(self, edge: Tensor) -> Arrival:
        """Send a state to the left; the right neighbour's arrives, or None on the last worker."""
        ...

    def relay(self, start: Tensor, roll: Callable[[Tensor], Tensor]) -> None:
        """Worker after worker: `roll` takes this worker's start (the left one's end) and returns its end."""
        ...

    def around(self, edge: Tensor) -> Tensor:
        """The last worker's state, for the first: the start of the next window. Others get their own back."""
        ...


def nothing() -> None:
    """The arrival where no worker sends."""


class Alone:
    """One worker holds the whole window."""

    is_first = True
    is_last = True

    def to_right(self, edge: Tensor) -> Arrival:
        return nothing

    def to_left(self, edge: Tensor) -> Arrival:
        return nothing

    def relay(self, start: Tensor, roll: Callable[[Tensor], Tensor]) -> None:
        roll(start)

    def around(self, edge: Tensor) -> Tensor:
        return edge

"""The recurrences g of Eq. 1: h_t = g(x_t, h_{t-1}).

Shape letters, here and in every room above:

    B  steps in a block          N  blocks worked on side by side (streams x blocks)
    E  width of the input        H  width of a layer's hidden state
    D  width of a layer's state  (H; 2H for an lstm, whose state is h and c together)
    d  width of a free state     (the sum of D over the layers)

A cell's state begins with what the layer above sees: `state[:, :H]` is h.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tpdist.models.gru import gru

CUDNN_STEPS = 65_535  # cuDNN takes no longer sequence, and says that it is not contiguous (pytorch issue 133751)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class Cell(nn.Module):
    """One layer's recurrence. A user's own cell subclasses this and writes `step`, and `project` if it can.

    `__init__` takes `(inputs, hidden)`. `forward` is the plain loop over the steps; a subclass may
    replace it by a faster one, which must compute the same.
    """

    parts: ClassVar[int] = 1  # D = parts * H

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.inputs = inputs
        self.hidden = hidden

    @property
    def state_size(self) -> int:
        """D."""
        return self.parts * self.hidden

    def project(self, x: Tensor) -> Tensor:
        """What depends on the inputs alone, for all steps at once: [B, N, E] -> [B, N, anything]."""
        return x

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """One step: a projected input [N, anything] and a state [N, D] give the next state [N, D]."""
        raise TypeError(f"{type(self).__name__} has no step(x, state)")

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 1 for B steps: x [B, N, E], state [N, D] -> the outputs h [B, N, H], the last state [N, D]."""
        outputs, projection = [], self.project(x)
        if projection.is_floating_point():  # or the sum with another bfloat16 product would be one
            projection = projection.to(state.dtype)
        for projected in projection:
            state = self.step(projected, state)
            outputs.append(state[:, : self.hidden])
        return torch.stack(outputs), state


class Elman(Cell):
    """h_t = σ(W_x x_t + W_h h_{t-1} + b) (paper, Section 1.1, without the b; Elman 1990)."""

    def __init__(self, inputs: int, hidden: int, activation: str = "logistic"):
        super().__init__(inputs, hidden)
        self.input = nn.Linear(inputs, hidden)
        self.recurrent = nn.Linear(hidden, hidden, bias=False)
        self.activation = ACTIVATIONS[activation]

    def project(self, x: Tensor) -> Tensor:
        return self.input(x)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return self.activation(x + self.recurrent(state))


class MRNN(Cell):
    """h_t = σ(α ⊙ W_x x_t ⊙ W_h h_{t-1} + β_h ⊙ W_h h_{t-1} + β_x ⊙ W_x x_t + b).

    Multiplicative integration (Wu et al. 2016, Eq. 4); with activation `identity` it is linear in h_{t-1},
    the case of the paper's footnote 1.
    """

    def __init__(self, inputs: int, hidden: int, activation: str = "tanh"):
        super().__init__(inputs, hidden)
        self.input = nn.Linear(inputs, hidden, bias=False)
        self.recurrent = nn.Linear(hidden, hidden, bias=False)
        self.alpha = nn.Parameter(torch.ones(hidden))
        self.beta_h = nn.Parameter(torch.full((hidden,), 0.5))
        self.beta_x = nn.Parameter(torch.full((hidden,), 0.5))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.activation = ACTIVATIONS[activation]

    def project(self, x: Tensor) -> Tensor:
        return self.input(x)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        recurrent = self.recurrent(state)
        gain = self.alpha * x + self.beta_h
        return self.activation(gain * recurrent + self.beta_x * x + self.bias)


class GRU(Cell):
    """The gated recurrent unit (Cho et al. 2014), torch's parametrisation; `gru.py` on a CPU, else torch's kernel."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)
        self.rnn = nn.GRU(inputs, hidden)

    def project(self, x: Tensor) -> Tensor:
        weight, _, bias, _ = self.rnn.all_weights[0]
        return nn.functional.linear(x, weight, bias)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """The oracle of `forward`."""
        x_r, x_z, x_n = x.chunk(3, -1)
        _, weight, _, bias = self.rnn.all_weights[0]
        h_r, h_z, h_n = nn.functional.linear(state, weight, bias).chunk(3, -1)
        reset, update = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        new = torch.tanh(x_n + reset * h_n)
        return new + update * (state - new)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            return gru(x, state, self.rnn.all_weights[0])
        outputs, last = in_pieces(self.rnn, x, state.contiguous().unsqueeze(0))  # cuDNN takes no other
        return outputs, last.squeeze(0)


class LSTM(Cell):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; with forget gates) in torch's kernels."""

    parts = 2

    def __init__(self, inputs: int, hidden: int):
        super().__init__(inputs, hidden)
        self.rnn = nn.LSTM(inputs, hidden)

    def project(self, x: Tensor) -> Tensor:
        weight, _, bias, _ = self.rnn.all_weights[0]
        return nn.functional.linear(x, weight, bias)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        """The oracle of `forward`."""
        h, c = state.chunk(2, -1)
        _, weight, _, bias = self.rnn.all_weights[0]
        gates = x + nn.functional.linear(h, weight, bias)
        i, f, g, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = (part.contiguous().unsqueeze(0) for part in state.chunk(2, -1))
        outputs, (h, c) = in_pieces(self.rnn, x, (h, c))
        return outputs, torch.cat([h, c], -1).squeeze(0)


def in_pieces(rnn: nn.RNNBase, x: Tensor, state: Any, most: int | None = None) -> tuple[Tensor, Any]:
    """`rnn(x, state)`: x [B, N, E], state [1, N, H], of an LSTM two of them -> h [B, N, H], the last state.

    most: steps at a time; None: as many as the device takes.
    """
    if most is None and x.is_cuda:
        most = CUDNN_STEPS
    with _at_full_precision(rnn, x):
        if most is None or len(x) <= most:
            return rnn(x, state)
        outputs = []
        for piece in x.split(most):
            h, state = rnn(piece, state)
            outputs.append(h)
        return torch.cat(outputs), state


def _at_full_precision(rnn: nn.RNNBase, x: Tensor) -> AbstractContextManager[object]:
    """Autocast off where it does not serve a recurrence.

    On a GPU torch would compute all of them in float16 whatever its dtype (AutocastRNN); of a CPU's LSTM oneDNN has
    bfloat16 steps only with AVX-512, and an error without.
    """
    served = not x.is_cuda and not isinstance(rnn, nn.LSTM)
    return nullcontext() if served else torch.autocast(x.device.type, enabled=False)

"""The adding problem (Hochreiter and Schmidhuber 1997, Section 5.4), put so that a cut gradient never sees its inputs.

A sequence has `steps` pairs (value, marker). Two of the first MARKED values are marked, and after the last step their
sum is wanted: whatever matters lies at least `steps` - MARKED steps back, the lag.

Shape letters: `models/cells.py`, `tprop/window.py`.
"""

import math

import torch
from torch import Tensor, nn

from tpdist.models import GRU, LanguageModel

MARKED = 20
TRIVIAL = 1 / 6  # mean squared error of always saying 1: the variance of a sum of two values, uniform in (0, 1)
SOLVED = TRIVIAL / 10


def sequences(n: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n sequences -> inputs [steps, n], complex: a value and its marker, 0 or 1, in one number; sums [n]."""
    value = torch.rand(steps, n, generator=generator)
    marker = torch.zeros_like(value)
    for low, high in ((0, MARKED // 2), (MARKED // 2, MARKED)):
        marker.scatter_(0, torch.randint(low, high, (1, n), generator=generator), 1.0)
    return torch.complex(value, marker), (value * marker).sum(0)


def in_blocks(inputs: Tensor, sums: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """inputs [steps, n], sums [n] -> inputs and labels [B, n, k]; a label is NaN where nothing is wanted."""
    labels = torch.full_like(inputs.real, math.nan)
    labels[-1] = sums
    first, second = (x.unflatten(0, (-1, block)).permute(1, 2, 0).contiguous() for x in (inputs, labels))
    return first, second


class Adder(LanguageModel):
    """A GRU that reads pairs, and a linear head with squared error; to `tprop`, on one worker, like a language model.

    The update gate's bias is drawn as log(uniform(1, steps - 1)), so that units forget over spans of all lengths up to
    the sequence's (Tallec and Ollivier 2018, Section 4). The head says 1 at first, the trivial answer.
    """

    def __init__(self, hidden: int, steps: int):
        cell = GRU(2, hidden)
        super().__init__(1, 2, [cell])
        self.embedding = _Pairs()
        nn.init.uniform_(self.weight, -(hidden**-0.5), hidden**-0.5)
        nn.init.ones_(self.bias)
        weight, _, bias, recurrent_bias = cell.rnn.all_weights[0]
        with torch.no_grad():
            weight.normal_(0, 0.5)
            bias.zero_()
            bias[hidden : 2 * hidden] = torch.empty(hidden).uniform_(1, steps - 1).log()
            recurrent_bias.zero_()

    def loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Summed squared error where something is wanted: h [..., H], labels [...]."""
        wanted = ~labels.isnan()
        return (self.logits(h[wanted])[:, 0] - labels[wanted]).square().sum()


class _Pairs(nn.Module):
    """Complex numbers [...] as pairs [..., 2]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.view_as_real(inputs)

"""The adding problem (Hochreiter and Schmidhuber 1997, Section 5.4), put so that a cut gradient never sees its inputs.

A sequence has `steps` pairs (value, marker). Two of the first MARKED values are marked, and after the last step their
sum is wanted: whatever matters lies at least `steps` - MARKED steps back, the lag. Always saying 1 errs by 1/6 in the
mean square: the variance of a sum of two values, uniform in (0, 1).

Shape letters: `models/cells.py`, `tprop/window.py`.
"""

import math

import torch
from torch import Tensor, nn

from tpdist.experiments.memory import Problem, forget_slowly
from tpdist.models import GRU, LanguageModel

MARKED = 20


def sequences(n: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n sequences -> inputs [steps, n], complex: a value and its marker, 0 or 1, in one number; sums [1, n]."""
    value = torch.rand(steps, n, generator=generator)
    marker = torch.zeros_like(value)
    for low, high in ((0, MARKED // 2), (MARKED // 2, MARKED)):
        marker.scatter_(0, torch.randint(low, high, (1, n), generator=generator), 1.0)
    return torch.complex(value, marker), (value * marker).sum(0, keepdim=True)


class Adder(LanguageModel):
    """A GRU that reads pairs, and a linear head with squared error; to `tprop`, on one worker, like a language model.

    The head says 1 at first, the trivial answer.
    """

    def __init__(self, hidden: int, steps: int):
        cell = GRU(2, hidden)
        super().__init__(1, 2, [cell])
        self.embedding = _Pairs()
        nn.init.uniform_(self.weight, -(hidden**-0.5), hidden**-0.5)
        nn.init.ones_(self.bias)
        forget_slowly(cell, steps)

    def loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Summed squared error where something is wanted: h [..., H], labels [...], NaN where nothing is."""
        wanted = ~labels.isnan()
        return (self.logits(h[wanted])[:, 0] - labels[wanted]).square().sum()


class _Pairs(nn.Module):
    """Complex numbers [...] as pairs [..., 2]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.view_as_real(inputs)


ADDING = Problem(sequences, Adder, unwanted=math.nan, within=MARKED, trivial=1 / 6)

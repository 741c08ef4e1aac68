"""What the problems of `tpdist reproduce long-memory` have in common.

Shape letters: `models/cells.py`, `tprop/window.py`; m answers of a sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tpdist.models import GRU, LanguageModel

Sequences = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """Sequences whose last steps want what their first steps held.

    sequences: n, steps, generator -> inputs [steps, n]; answers [m, n], wanted at the last m steps.
    model: hidden, steps -> a model that reads them, with its first parameters; its loss is the sum over answers.
    unwanted: the label where nothing is wanted. It is not IGNORED: a block of nothing but that has no boundary.
    within: what matters lies in the first `within` steps. trivial: the best mean error without a memory.
    """

    sequences: Callable[[int, int, torch.Generator], Sequences]
    model: Callable[[int, int], LanguageModel]
    unwanted: float
    within: int
    trivial: float

    @property
    def solved(self) -> float:
        """The mean error that counts as solved."""
        return self.trivial / 10

    def in_blocks(self, inputs: Tensor, answers: Tensor, block: int) -> Sequences:
        """inputs [steps, n], answers [m, n] -> inputs and labels [B, n, k]."""
        labels = answers.new_full(inputs.shape, self.unwanted)
        labels[-len(answers) :] = answers
        first, second = (x.unflatten(0, (-1, block)).permute(1, 2, 0).contiguous() for x in (inputs, labels))
        return first, second


def forget_slowly(cell: GRU, steps: int) -> None:
    """Draw the parameters that read the inputs, the update gate's bias as log(uniform(1, steps - 1)).

    So units forget over spans of all lengths up to the sequence's (Tallec and Ollivier 2018, Section 4).
    """
    weight, _, bias, recurrent_bias = cell.rnn.all_weights[0]
    gate = slice(cell.hidden, 2 * cell.hidden)
    with torch.no_grad():
        weight.normal_(0, 0.5)
        bias.zero_()
        bias[gate] = torch.empty(cell.hidden).uniform_(1, steps - 1).log()
        recurrent_bias.zero_()

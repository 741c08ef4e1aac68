"""The copying problem: a noiseless string has to be kept over a delay and given back.

In the form of Arjovsky, Shah and Bengio (2016, Section 5.2), after Hochreiter and Schmidhuber (1997), and small: COPIED
letters out of LETTERS, drawn uniformly, are the first inputs; BLANKs follow, with GO in the place before the answers;
at the last COPIED steps, whose inputs are blank, the letters are wanted in their order. Each is wanted `steps` - COPIED
steps after it was read, the lag. The blanks that are wanted there at all other steps do not count here: so no block but
the last has a loss, and the gradient of BPTT truncated at blocks never sees a letter. It may still learn to read what
the first, untrained recurrence happens to keep of them.

Without a memory nothing beats the uniform guess, ln(LETTERS) nats an answer.

Shape letters: `models/cells.py`, `tprop/window.py`.
"""

import math

import torch
from torch import Tensor, nn

from tpdist.experiments.memory import Problem, forget_slowly
from tpdist.models import GRU, LanguageModel

LETTERS = 4  # their ids are 0 … LETTERS - 1
BLANK, GO = LETTERS, LETTERS + 1
TYPES = LETTERS + 2
COPIED = 3


def sequences(n: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n sequences -> inputs [steps, n] ids; the letters [COPIED, n] ids, wanted at the last COPIED steps."""
    letters = torch.randint(LETTERS, (COPIED, n), generator=generator)
    inputs = torch.full((steps, n), BLANK)
    inputs[:COPIED] = letters
    inputs[-COPIED - 1] = GO
    return inputs, letters


class Copier(LanguageModel):
    """A language model of one GRU whose loss counts the answers alone.

    The head begins at 0, the uniform guess over all TYPES.
    """

    def __init__(self, hidden: int, steps: int):
        cell = GRU(TYPES, hidden)
        super().__init__(TYPES, TYPES, [cell])
        nn.init.zeros_(self.weight)
        forget_slowly(cell, steps)

    def loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Summed cross entropy in nats where something is wanted: h [..., H], labels [...], negative elsewhere."""
        wanted = labels >= 0
        return super().loss(h[wanted], labels[wanted])


COPYING = Problem(sequences, Copier, unwanted=-2, within=COPIED, trivial=math.log(LETTERS))

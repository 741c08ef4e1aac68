"""The peer: truncated BPTT as people write it by hand, and write it well.

`nn.Embedding`, `nn.GRU` (cuDNN on a GPU), `nn.Linear`, `cross_entropy`, Adam, a clip; the state is carried, nothing
waits for the device, and nothing of this package is used. Beside it the products that such an update cannot do without.

Shape letters: B steps, N streams, V types.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpdist.models.products import linear, weight_gradient

LR, CLIP = 0.003, 0.5


class PlainLoop:
    """A GRU language model of `types` types, one layer of `hidden`, and its optimiser."""

    def __init__(
        self,
        types: int,
        hidden: int,
        streams: int,
        device: str = "cpu",
        fused: bool = False,
    ):
        self.embedding = nn.Embedding(types, hidden).to(device)
        self.rnn = nn.GRU(hidden, hidden).to(device)
        self.head = nn.Linear(hidden, types).to(device)
        self.parameters = [p for module in (self.embedding, self.rnn, self.head) for p in module.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LR, fused=fused or None)
        self.state = torch.zeros(1, streams, hidden, device=device)

    def update(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step on a window of every stream: ids [B, N] each -> mean loss in nats, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        h, last = self.rnn(self.embedding(inputs), self.state)
        loss = functional.cross_entropy(self.head(h).flatten(0, 1), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.state = last.detach()
        return loss.detach()


class Products:
    """An update's floor: the matrix products of B steps of N streams, forward and backward, by the fastest library."""

    def __init__(self, types: int, hidden: int, steps: int, streams: int, device: str = "cpu"):
        self._steps = steps
        self._h = torch.randn(steps * streams, hidden, device=device)
        self._gates = torch.randn(steps * streams, 3 * hidden, device=device)
        self._recurrence = torch.randn(3 * hidden, hidden, device=device)
        self._head = torch.randn(types, hidden, device=device)
        self._out = torch.randn(steps * streams, types, device=device)

    def __call__(self) -> None:
        h, gates = self._h, self._gates
        linear(h, self._recurrence)  # the inputs' part, all steps at once
        for part in h.chunk(self._steps):
            linear(part, self._recurrence)
        linear(h, self._head)
        linear(self._out, self._head.t())
        weight_gradient(self._out, h)
        for part in gates.chunk(self._steps):
            linear(part, self._recurrence.t())
        linear(gates, self._recurrence.t())
        for _ in ("inputs", "recurrence"):
            weight_gradient(gates, h)


def random_tokens(types: int, *shape: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Ids drawn alike from all types: speed does not depend on what they are."""
    return torch.randint(types, shape, generator=torch.Generator().manual_seed(seed)).to(device)

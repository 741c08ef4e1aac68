"""An RNN language model as the method sees it: a block of tokens and a free state in, losses and a state out.

Shape letters: `cells.py`; V types.
"""

import copy

import torch
from torch import Tensor, nn

from tpdist.models.cells import Cell
from tpdist.models.head import cross_entropy


class LanguageModel(nn.Module):
    """Embedding, layers of cells, softmax head.

    The state of all layers is one flat tensor [N, d]: layer by layer, each layer's h first. So the
    method above treats every cell and any number of layers alike.
    """

    def __init__(self, types: int, embedding: int, layers: list[Cell], tied: bool = False):
        super().__init__()
        top = layers[-1]
        self.embedding = nn.Embedding(types, embedding)
        self.layers = nn.ModuleList(layers)
        self.weight = self.embedding.weight if tied else nn.Parameter(torch.empty(types, top.hidden))
        self.bias = nn.Parameter(torch.zeros(types))
        self.sizes = [layer.state_size for layer in layers]
        self.state_size = sum(self.sizes)
        begin = self.state_size - self.sizes[-1]
        self.seen = slice(begin, begin + top.hidden)
        self.product_dtype: torch.dtype | None = None  # of matrix products, where lower than the parameters'

    def unroll(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 1 for B steps: inputs [B, N] (ids), state [N, d] -> the top layer's h [B, N, H], last state [N, d]."""
        with torch.autocast(inputs.device.type, self.product_dtype, enabled=self.product_dtype is not None):
            x, states = self.embedding(inputs), []
            for layer, start in zip(self.layers, state.split(self.sizes, -1), strict=True):
                x, last = layer(x, start)
                states.append(last)
        return x.to(state.dtype), torch.cat(states, -1).to(state.dtype)

    def copied(self) -> "LanguageModel":
        """A copy with parameters of its own, in one piece where cuDNN wants them so."""
        kept = [t for module in self.modules() for t in vars(module).values() if isinstance(t, Tensor)]
        other = copy.deepcopy(self, {id(t): t.detach().clone() for t in kept if not t.is_leaf})  # torch refuses those
        for module in other.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # nothing to do on a CPU
        return other

    def in_backward_order(self) -> list[nn.Parameter]:
        """The parameters that require gradients, in the order in which a backward pass ends with them."""
        layers = [p for layer in reversed(self.layers) for p in layer.parameters()]
        tied = self.weight is self.embedding.weight
        order = [self.bias, *layers, self.weight] if tied else [self.weight, self.bias, *layers, self.embedding.weight]
        return [p for p in order if p.requires_grad]

    @property
    def rows_of_tokens(self) -> Tensor | None:
        """The parameter whose gradient is 0 but in the rows of the ids embedded; None where the head shares it."""
        return None if self.weight is self.embedding.weight else self.embedding.weight

    def visible(self, state: Tensor) -> Tensor:
        """What the head sees of a state: [N, d] -> the top layer's h [N, H]."""
        return state[..., self.seen]

    def loss(self, h: Tensor, labels: Tensor) -> Tensor:
        """Summed cross entropy in nats of labels [...] under f(h), h [..., H] (Eq. 2-3)."""
        return cross_entropy(h.reshape(-1, h.shape[-1]), self.weight, self.bias, labels.reshape(-1), self.product_dtype)

    def logits(self, h: Tensor) -> Tensor:
        """h [..., H] -> [..., V]."""
        return nn.functional.linear(h, self.weight, self.bias)

    def zero_state(self, n: int) -> Tensor:
        """[n, d]."""
        return self.bias.new_zeros(n, self.state_size)

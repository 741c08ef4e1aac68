"""What may be learnt at test time, from tokens that have been predicted already: past h, or θ itself.

Each takes the block just read and gives the state from which the next one is rolled out.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.objective import frozen


class AtTestTime(Protocol):
    """Shape letters: `evaluation.py` reads one stream; inputs [B, 1], labels [B], start and after [1, d]."""

    def learn(self, model: LanguageModel, inputs: Tensor, labels: Tensor, start: Tensor, after: Tensor) -> Tensor:
        """start: the state before the block; after: that after it, as θ rolled it out. -> the next block's start.

        The model may be changed.
        """
        ...


@dataclass(frozen=True)
class HSteps:
    """Optimise past h (Section 4.1): the next block begins where one goes on from a start fitted to the last one.

    A step of size `lr` lowers CE(h) + λ/2 ‖h - ĥ‖² of the block, λ the `weight` that ties h to ĥ.
    """

    steps: int
    lr: float
    weight: float

    def learn(self, model: LanguageModel, inputs: Tensor, labels: Tensor, start: Tensor, after: Tensor) -> Tensor:
        h = start
        with frozen(model):
            for _ in range(self.steps):
                leaf = h.detach().requires_grad_()
                outputs, _ = model.unroll(inputs, leaf)
                cost = model.loss(outputs[:, 0], labels) + 0.5 * self.weight * (leaf - start).square().sum()
                (gradient,) = torch.autograd.grad(cost, leaf)
                h = leaf.detach() - self.lr * gradient
        with torch.no_grad():
            return model.unroll(inputs, h)[1]


@dataclass(frozen=True)
class ThetaSteps:
    """Dynamic evaluation (Mikolov et al. 2010; the plain form in Krause et al. 2018): θ goes on learning.

    A step of size `lr` goes down the gradient of the block's mean cross entropy, which ends at the block's start.
    """

    steps: int
    lr: float

    def learn(self, model: LanguageModel, inputs: Tensor, labels: Tensor, start: Tensor, after: Tensor) -> Tensor:
        parameters = [p for p in model.parameters() if p.requires_grad]
        for _ in range(self.steps):
            outputs, _ = model.unroll(inputs, start)
            cost = model.loss(outputs[:, 0], labels) / len(labels)
            gradients = torch.autograd.grad(cost, parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:  # an own cell need not use all that it has
                        parameter.sub_(gradient, alpha=self.lr)
        return after

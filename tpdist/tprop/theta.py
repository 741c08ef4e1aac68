"""The θ-step (Section 3, step 2): one optimiser step on the parameters along a gradient summed over workers."""

from typing import Protocol

import torch
from torch import Tensor

from tpdist.config import Optimizer
from tpdist.models import LanguageModel
from tpdist.tprop.optimizers import build_optimizer


class GradientSum(Protocol):
    """Adds the parameters' gradients up over all workers; all of them make every call, in one order."""

    def begin(self, inputs: Tensor | None, tokens: int) -> None:
        """Before the passes of an update. inputs: ids that they embed, None for no block; tokens: of all workers."""
        ...

    def last_pass(self) -> None:
        """What the next backward pass adds to a gradient is the last: it may be sent."""
        ...

    def finish(self) -> None:
        """Wait until every `.grad` is the sum."""
        ...


class Theta:
    """The parameters that require gradients, and their optimiser.

    gradient_sum: over all workers; the sum of undivided gradients is exact however unevenly the blocks are divided.
    """

    def __init__(self, model: LanguageModel, spec: Optimizer, gradient_sum: GradientSum | None = None):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(spec, spec.lr, list(self.parameters), "optimizer")
        self._clip = spec.clip
        self._sum = gradient_sum

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def begin(self, inputs: Tensor | None, tokens: int) -> None:
        """Before the passes that add to `.grad`. Arguments as those of `GradientSum.begin`."""
        self.optimizer.zero_grad(set_to_none=True)
        if self._sum is not None:
            self._sum.begin(inputs, tokens)

    def last_pass(self) -> None:
        """Before the last of them."""
        if self._sum is not None:
            self._sum.last_pass()

    def step(self, tokens: int) -> None:
        """Sum, divide by the window's tokens over all workers, clip, step."""
        if self._sum is not None:
            self._sum.finish()
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.div_(tokens)
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self._clip)
        self.optimizer.step()

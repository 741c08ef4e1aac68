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


class BlowUpError(ArithmeticError):
    """The θ-gradient over all workers, or a sum over a window, is not finite; the same on all of them.

    states: what the pass of this worker read, by name: first (values), start, target, dual, costate; None if unknown.
    """

    def __init__(self, what: str, states: dict[str, Tensor] | None = None):
        super().__init__(what)
        self.states = states


class Theta:
    """The parameters that require gradients, and their optimiser.

    gradient_sum: over all workers; the sum of undivided gradients is exact however unevenly the blocks are divided.
    capturable: the steps are to be recorded in a CUDA graph.
    watch: look at the gradient's norm before every step, which waits for the device, and raise BlowUpError before θ
    moves. norm: of the last gradient, where it was computed.
    guards: whether the optimiser divides for itself, and on a GPU takes no step along a gradient that is not finite.
    """

    watch = False
    norm: Tensor | None = None

    def __init__(
        self,
        model: LanguageModel,
        spec: Optimizer,
        gradient_sum: GradientSum | None = None,
        capturable: bool = False,
    ):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(spec, list(self.parameters), "optimizer", True, capturable)
        self._clip = spec.clip
        fused = bool(self.optimizer.param_groups[0].get("fused"))
        self.guards = fused and all(p.dtype == torch.float32 for p in self.parameters)
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

    def step(self, tokens: int, states: dict[str, Tensor] | None = None) -> None:
        """Sum, divide by the window's tokens over all workers, clip, step. Raises BlowUpError if it is to `watch`.

        states: those that the error is to carry.

        Division and clip are one factor, which a fused optimiser applies as it reads the gradient. (Its factor is a
        float32, so gradients in float64 are divided here.) On a GPU it then does not step along one that is not finite.
        """
        if self._sum is not None:
            self._sum.finish()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        divisor = gradients[0].new_full((), tokens)
        if self._clip is not None or self.watch or divisor.is_cuda:
            self.norm = torch.nn.utils.get_total_norm(gradients) / tokens
            if self.watch and not self.norm.isfinite():
                raise BlowUpError(f"the gradient of θ has a norm of {float(self.norm)}", states)
            if self._clip is not None:  # as torch.nn.utils.clip_grad_norm_ does
                divisor /= (self._clip / (self.norm + 1e-6)).clamp(max=1)
        if self.guards:
            self.optimizer.grad_scale = divisor  # type: ignore[attr-defined]
            if self.norm is not None and self.norm.is_cuda:
                self.optimizer.found_inf = 1 - self.norm.isfinite().to(divisor.dtype)  # type: ignore[attr-defined]
        else:
            for gradient in gradients:
                gradient /= divisor
        self.optimizer.step()

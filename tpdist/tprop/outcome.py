"""What a visit leaves. Shape letters: `window.py`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tpdist.tprop.plan import Plan
from tpdist.tprop.window import Neighbours, Window


@dataclass(frozen=True)
class Outcome:
    """What a visit leaves, as tensors on the device: reading one waits for the device.

    loss: summed cross entropy of this worker's tokens in the last θ-step's forward pass, in nats, before it. penalty:
    λ C there. residuals: Σ ‖h - ĥ‖² over this worker's blocks by place in the window, as `by_place` has it. dual: λ² Σ
    ‖ĥ_last - ĥ_first‖² over the passes of the visit (Boyd et al. 2011, Section 3.3). carry: [S, d], the window's last
    prediction, and nothing else: it is kept until the next visit has begun. states: those that the last pass read, as
    in `BlowUpError`.
    """

    loss: Tensor
    penalty: Tensor
    residuals: Tensor
    dual: Tensor
    carry: Tensor
    states: dict[str, Tensor] | None = None

    @property
    def primal(self) -> Tensor:
        """Σ ‖h - ĥ‖² over all places."""
        return self.residuals.sum()


def by_place(plan: Plan, squares: Tensor, first: int) -> Tensor:
    """Sums over streams by place in the window: squares [S, m] of the boundaries from `first` on -> [bins] in float64.

    Boundary 1 is the first place; neighbouring places share a bin where a window has more of them.
    """
    at = torch.arange(first - 1, first - 1 + squares.shape[1], device=squares.device).clamp(0, plan.places - 1)
    sums = squares.new_zeros(plan.bins, dtype=torch.float64)
    return sums.index_add_(0, at // plan.per_bin, squares.sum(0, dtype=torch.float64))


def squared_residuals(
    plan: Plan, window: Window, h: Tensor, predictions: Tensor, fresh: Tensor | None, neighbours: Neighbours
) -> Tensor:
    """Σ ‖h - ĥ‖² by place [bins], every boundary once: on its own worker if ĥ came from the left, else on the left one.

    h [S, k+1, d]; predictions [S, k, d], or, where they came from the left, fresh [S, k+1, d].
    """
    if fresh is None:
        residual, weight = h[:, 1:] - predictions, window.coupled[:, 1:]
    else:
        own = h.shape[1] if neighbours.is_last else h.shape[1] - 1
        residual, weight = (h - fresh)[:, :own], window.coupled[:, :own]
    return by_place(plan, residual.square_().sum(-1) * weight, window.offset + (fresh is None))


def squared_change(plan: Plan, window: Window, before: Tensor, after: Tensor) -> Tensor:
    """λ² Σ ‖Δĥ‖² of predictions before and after, [S, k, d] -> scalar."""
    return plan.terms.weight**2 * ((after - before).square_().sum(-1) * window.coupled[:, 1:]).sum()

"""Costate sweeps: exact gradients through many blocks, all blocks at once (ours; README, "The method").

The multiplier of the constraint h_i = ĥ_i is minus the costate δ_i = ∂L_{≥i}/∂h_i. A sweep is

    δ_i ← ∂/∂h_i [CE_i + ⟨δ_{i+1}, ĥ_{i+1}⟩]      for all blocks in parallel.

From δ = 0 on exactly rolled-out states, `s` sweeps give the θ-step, whose objective then carries
Σ ⟨δ_{i+1}, ĥ_{i+1}⟩, the gradient of BPTT in which every block's loss reaches `s` blocks further back;
K-1 sweeps give full BPTT over the window.

Shape letters: `window.py`.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.objective import blocks_pass, chunks, frozen, target_gradient
from tpdist.tprop.plan import Plan
from tpdist.tprop.rollout import RollOut
from tpdist.tprop.window import Neighbours, Window


def costate_sweeps(
    model: LanguageModel,
    plan: Plan,
    window: Window,
    start: Tensor,
    costate: Tensor,
    neighbours: Neighbours,
    rolled: RollOut | None = None,
) -> Tensor:
    """`plan.sweeps` sweeps over the boundaries of one window. start [S, k, d], costate [S, k+1, d] -> [S, k+1, d].

    The cross entropy's part of a sweep does not change from sweep to sweep: the head is passed once.
    """
    if plan.sweeps == 0 or not window.constrained:
        return costate
    if plan.keep_costates:
        costate = _with_right_edge(costate[:, :-1], neighbours)
    with frozen(model) if rolled is None else nullcontext():
        own = _loss_gradient(model, plan, window, start, rolled)
        for sweep in range(plan.sweeps):
            gradient = own
            if sweep > 0 or plan.keep_costates:  # else the costate is 0
                gradient = own + transpose_product(model, window, start, costate, plan.chunk_blocks, rolled)
            costate = _with_right_edge(gradient, neighbours)
    return costate


def _loss_gradient(model: LanguageModel, plan: Plan, window: Window, start: Tensor, rolled: RollOut | None) -> Tensor:
    """Gradient of the cross entropy with respect to the states at boundaries 0..k-1. start [S, k, d] -> the same.

    Where the loss sits on targets (Eq. 8), a boundary's own token counts too: a costate is what the loss from its
    boundary on says of the state there.
    """
    target = torch.cat([start, torch.zeros_like(start[:, :1])], 1)
    nothing = torch.zeros_like(target)
    loss = plan.loss_alone
    if rolled is not None:
        own = rolled.loss_gradient.view(start.shape)
    else:
        own = blocks_pass(model, loss, window, start, target, nothing, plan.chunk_blocks, to_start=True).start_gradient
        assert own is not None
    if loss.loss_on == "prediction":
        return own
    return own + target_gradient(model, loss, window, target, nothing, nothing, plan.chunk_blocks)[:, :-1]


def _with_right_edge(costate: Tensor, neighbours: Neighbours) -> Tensor:
    """Costates of boundaries 0..k-1 [S, k, d], and the right neighbour's first, else 0: [S, k+1, d]."""
    edge = neighbours.to_left(costate[:, 0])
    return torch.cat([costate, (torch.zeros_like(costate[:, 0]) if edge is None else edge)[:, None]], 1)


def transpose_product(
    model: LanguageModel,
    window: Window,
    start: Tensor,
    costate: Tensor,
    chunk_blocks: int,
    rolled: RollOut | None = None,
) -> Tensor:
    """J_iᵀ δ_{i+1} for every block, J_i = ∂ĥ_{i+1}/∂h_i; the recurrence alone. -> [S, k, d]."""
    d = start.shape[-1]
    inputs, flat = window.inputs.flatten(1), start.reshape(-1, d)
    right = (costate[:, 1:] * window.coupled[:, 1:, None]).reshape(-1, d)
    if rolled is not None:
        return rolled.pull_back(right).view(start.shape)
    product = torch.empty_like(flat)
    for chunk in chunks(flat.shape[0], chunk_blocks):
        leaf = flat[chunk].detach().requires_grad_()
        with torch.enable_grad():
            prediction = model.unroll(inputs[:, chunk], leaf)[1]
        (product[chunk],) = torch.autograd.grad(prediction, leaf, right[chunk])
    return product.view(start.shape)

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
from tpdist.tprop.objective import blocks_pass, frozen, target_gradient
from tpdist.tprop.parts import Part, cut
from tpdist.tprop.plan import Plan
from tpdist.tprop.rollout import RollOut
from tpdist.tprop.window import Arrival, Neighbours, Window


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
        costate = _with_right_edge(costate[:, :-1], neighbours.to_left(costate[:, 0]))
    with frozen(model) if rolled is None else nullcontext():
        own = _loss_gradient(model, plan, window, start, rolled)
        for index in range(plan.sweeps):
            if index == 0 and not plan.keep_costates:  # the costate is 0
                costate = _with_right_edge(own, neighbours.to_left(own[:, 0]))
            else:
                costate = sweep(model, window, start, costate, own, plan.chunk_blocks, neighbours, rolled)
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


def _with_right_edge(costate: Tensor, arrival: Arrival) -> Tensor:
    """Costates of boundaries 0..k-1 [S, k, d], and the right neighbour's first, else 0: [S, k+1, d]."""
    edge = arrival()
    return torch.cat([costate, (torch.zeros_like(costate[:, 0]) if edge is None else edge)[:, None]], 1)


def sweep(
    model: LanguageModel,
    window: Window,
    start: Tensor,
    costate: Tensor,
    own: Tensor,
    chunk_blocks: int,
    neighbours: Neighbours,
    rolled: RollOut | None = None,
) -> Tensor:
    """δ_i ← own_i + J_iᵀ δ_{i+1} for every block, J_i = ∂ĥ_{i+1}/∂h_i; the recurrence alone.

    start, own [S, k, d], costate [S, k+1, d] -> [S, k+1, d]. Boundary 0's is under way to the left while those of the
    other blocks are computed.
    """
    S, k, d = start.shape
    right = costate * window.coupled[..., None]
    if rolled is not None:
        swept = own + rolled.pull_back(right[:, 1:].reshape(-1, d)).view(start.shape)
        return _with_right_edge(swept, neighbours.to_left(swept[:, 0]))
    swept = torch.empty_like(own)
    first, others = cut(S, k, chunk_blocks, None if neighbours.is_first else "first")

    def pull_back(parts: list[Part]) -> None:
        for part in parts:
            leaf = part.of(start).detach().requires_grad_()
            with torch.enable_grad():
                prediction = model.unroll(part.tokens(window.inputs), leaf)[1]
            product = torch.autograd.grad(prediction, leaf, part.right(right))[0]
            part.put(swept, part.of(own) + product)

    pull_back(first)
    arrival = neighbours.to_left(swept[:, 0])
    pull_back(others)
    return _with_right_edge(swept, arrival)

"""Costate sweeps: exact gradients through many blocks, all blocks at once (ours; README, "The method").

The multiplier of the constraint h_i = ĥ_i is minus the costate δ_i = ∂L_{≥i}/∂h_i. A sweep is

    δ_i ← ∂/∂h_i [CE_i + ⟨δ_{i+1}, ĥ_{i+1}⟩]      for all blocks in parallel.

From δ = 0 on exactly rolled-out states, `s` sweeps give the θ-step, whose objective then carries
Σ ⟨δ_{i+1}, ĥ_{i+1}⟩, the gradient of BPTT in which every block's loss reaches `s` blocks further back;
K-1 sweeps give full BPTT over the window.

A window in random order may end with the costate that the last visit of the window behind it left there
(`method.edge_costate: kept`), as it starts from the state that the one before it left: the reach then goes on past the
window, through values as old as those visits, and no step has to wait for another one.

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
    stored: Tensor | None,
    neighbours: Neighbours,
    rolled: RollOut | None = None,
) -> Tensor | None:
    """`plan.sweeps` sweeps over the boundaries of one window: start [S, k, d] -> [S, k+1, d]; None where all are 0.

    stored: [S, k+1, d], what the last visits left, of which the plan says what is read; None begins with 0. The cross
    entropy's part of a sweep does not change from sweep to sweep: the head is passed once.
    """
    sweeps = plan.sweeps if window.constrained else 0
    if not sweeps and not plan.edge_costate:
        return None
    S, k, d = start.shape
    costate = start.new_zeros(S, k + 1, d)
    if stored is not None:
        if plan.keep_costates:
            costate[:, :-1] = stored[:, :-1]
        if plan.edge_costate:
            costate[:, -1] = stored[:, -1]
    if not sweeps:
        return costate
    with frozen(model) if rolled is None else nullcontext():
        own = _loss_gradient(model, plan, window, start, rolled)
        if stored is None:  # from 0 the first sweep gives the cross entropy's part
            costate[:, :-1], sweeps = own, sweeps - 1
        _take_right_edge(costate, neighbours.to_left(costate[:, 0]))
        for _ in range(sweeps):
            sweep(model, window, start, costate, own, plan.chunk_blocks, neighbours, rolled)
    return costate


def _loss_gradient(model: LanguageModel, plan: Plan, window: Window, start: Tensor, rolled: RollOut | None) -> Tensor:
    """Gradient of the cross entropy with respect to the states at boundaries 0..k-1. start [S, k, d] -> the same.

    Where the loss sits on targets (Eq. 8), a boundary's own token counts too: a costate is what the loss from its
    boundary on says of the state there.
    """
    S, k, d = start.shape
    nothing = start.new_zeros(()).expand(S, k + 1, d)
    terms = plan.loss_alone
    target = nothing if terms.loss_on == "prediction" else torch.cat([start, nothing[:, :1]], 1)
    if rolled is not None:
        own = rolled.loss_gradient.view(start.shape)
    else:
        own = torch.empty_like(start)

        def take(part: Part, _: Tensor, gradient: Tensor | None) -> None:
            assert gradient is not None
            part.put(own, gradient)

        blocks_pass(model, terms, window, start, target, nothing, plan.chunk_blocks, to_start=True, each=take)
    if terms.loss_on == "prediction":
        return own
    return own + target_gradient(model, terms, window, target, nothing, nothing, plan.chunk_blocks)[:, :-1]


def _take_right_edge(costate: Tensor, arrival: Arrival) -> None:
    """Boundary k of costate [S, k+1, d]: the right neighbour's first; else it stays."""
    edge = arrival()
    if edge is not None:
        costate[:, -1] = edge


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

    start, own [S, k, d]; costate [S, k+1, d] is changed, and returned. Boundary 0's is under way to the left while
    those of the other blocks are computed.
    """
    S, k, d = start.shape
    if rolled is not None:
        costate[:, :-1] = own + rolled.pull_back(costate[:, 1:].reshape(-1, d)).view(start.shape)
        _take_right_edge(costate, neighbours.to_left(costate[:, 0]))
        return costate
    first, others = cut(S, k, chunk_blocks, None if neighbours.is_first else "first")

    def pull_back(parts: list[Part]) -> None:
        for part in parts:  # from left to right: what one has changed no other reads
            leaf = part.of(start).detach().requires_grad_()
            with torch.enable_grad():
                prediction = model.unroll(part.tokens(window.inputs), leaf)[1]
            pulled = torch.autograd.grad(prediction, leaf, part.right(costate))[0]
            part.put(costate[:, :-1], part.of(own) + pulled)

    pull_back(first)
    arrival = neighbours.to_left(costate[:, 0])
    pull_back(others)
    _take_right_edge(costate, arrival)
    return costate

"""Costate sweeps: exact gradients through many blocks, all blocks at once (ours; design §3).

The multiplier of the constraint h_i = ĥ_i is minus the costate δ_i = ∂L_{≥i}/∂h_i. A sweep is

    δ_i ← ∂/∂h_i [CE_i + ⟨δ_{i+1}, ĥ_{i+1}⟩]      for all blocks in parallel.

From δ = 0 on exactly rolled-out states, `s` sweeps give the θ-step, whose objective then carries
Σ ⟨δ_{i+1}, ĥ_{i+1}⟩, the gradient of BPTT in which every block's loss reaches `s` blocks further back;
K-1 sweeps give full BPTT over the window.

Shape letters: `window.py`.
"""

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.objective import blocks_pass, chunks, frozen
from tpdist.tprop.plan import Plan
from tpdist.tprop.window import Neighbours, Window


def costate_sweeps(
    model: LanguageModel, plan: Plan, window: Window, start: Tensor, costate: Tensor, neighbours: Neighbours
) -> Tensor:
    """`plan.sweeps` sweeps over the boundaries of one window. start [S, k, d], costate [S, k+1, d] -> [S, k+1, d].

    The cross entropy's part of a sweep does not change from sweep to sweep: the head is passed once.
    """
    if plan.sweeps == 0 or not window.constrained:
        return costate
    zero = torch.zeros_like(costate)
    with frozen(model):
        own = blocks_pass(
            model, plan.loss_alone, window, start, zero, zero, plan.chunk_blocks, to_start=True
        ).start_gradient
        assert own is not None
        first = True
        for _ in range(plan.sweeps):
            through = torch.zeros_like(own)
            if not first or plan.keep_costates:
                through = transpose_product(model, window, start, costate, plan.chunk_blocks)
            first = False
            costate = torch.cat([own + through, zero[:, -1:]], 1)
            from_right = neighbours.to_left(costate[:, 0])
            if from_right is not None:
                costate[:, -1] = from_right
    return costate


def transpose_product(
    model: LanguageModel, window: Window, start: Tensor, costate: Tensor, chunk_blocks: int
) -> Tensor:
    """J_iᵀ δ_{i+1} for every block, J_i = ∂ĥ_{i+1}/∂h_i; the recurrence alone. -> [S, k, d]."""
    d = start.shape[-1]
    inputs, flat = window.inputs.flatten(1), start.reshape(-1, d)
    right = (costate[:, 1:] * window.coupled[:, 1:, None]).reshape(-1, d)
    product = torch.empty_like(flat)
    for chunk in chunks(flat.shape[0], chunk_blocks):
        leaf = flat[chunk].detach().requires_grad_()
        with torch.enable_grad():
            prediction = model.unroll(inputs[:, chunk], leaf)[1]
        (product[chunk],) = torch.autograd.grad(prediction, leaf, right[chunk])
    return product.view(start.shape)

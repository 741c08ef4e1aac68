"""A lead that failed: H-steps of damped Gauss-Newton, diagonal, on the boundaries alone (RESULTS.md has its row).

The plain H-step of 1/λ is Newton's where starts are held: Eq. 7 is λ/2 ‖h - ĥ + u‖² in a target, and its curvature λ.
With starts tied a boundary is the start of its right block too, where the objective is the cross entropy and the next
boundary's penalty. Their Gauss-Newton matrix is Σ_t A_tᵀ (diag p - p pᵀ) A_t + λ JᵀJ, with A_t the derivative of the
logits of step t, J that of ĥ_{i+1}. Its diagonal is estimated from one more backward pass, of labels drawn from the
model itself plus √λ ⟨v, ĥ⟩, v of random signs: the square of the gradient of that has the diagonal as its mean
(Martens 2020, Section 9, for the first term; Hutchinson 1990 for the second). λ, the target's own, is the damping.

Shape letters: `tprop/window.py`.
"""

import math

import torch
from torch import Tensor

from tpdist.errors import ConfigError
from tpdist.models import LanguageModel
from tpdist.tprop.h_steps import Targets, ask_right, h_gradient
from tpdist.tprop.objective import blocks_pass, frozen
from tpdist.tprop.outcome import Outcome, squared_change, squared_residuals
from tpdist.tprop.plan import Plan
from tpdist.tprop.states import Boundaries, first_values, keep
from tpdist.tprop.theta import Theta
from tpdist.tprop.window import Neighbours, Window


def visit(
    model: LanguageModel,
    plan: Plan,
    theta: Theta,
    window: Window,
    begin: int,
    boundaries: Boundaries,
    carried: Tensor,
    neighbours: Neighbours,
) -> Outcome:
    """`plan.h_steps` Gauss-Newton steps on tied targets, then a θ-step: a `method.visit` beside `method.name: pm`.

    The logits of a whole window exist at once, so it is for minibatches; several workers draw other labels than one,
    and every visit of a window draws the same. Raises ConfigError for settings that it would not follow.
    """
    if plan.held:
        raise ConfigError("a visit of Gauss-Newton steps moves starts; write method.starts: tied", "method.starts")
    if plan.theta_steps != 1:
        raise ConfigError(f"a visit of Gauss-Newton steps takes 1, got {plan.theta_steps}", "method.theta_steps")
    if plan.keep_duals or plan.dual is not None:
        raise ConfigError("a visit of Gauss-Newton steps has no duals; write method.name: pm", "method.name")
    k, weight = window.blocks, plan.terms.weight
    h = first_values(model, plan, window, begin, boundaries, carried, neighbours)  # [S, k+1, d]
    none = torch.zeros_like(h)
    targets = Targets(plan.h, h, window.movable, boundaries, begin, plan.closing and neighbours.is_last)
    first = None
    for _ in range(plan.h_steps):
        h = targets.h
        arrive = ask_right(plan, window, h, none, neighbours)
        with frozen(model):
            result = blocks_pass(
                model, plan.terms, window, h[:, :k], h, none, plan.chunk_blocks,
                to_start=True, neighbours=neighbours, arrive=arrive,
            )  # fmt: skip
            gradient = h_gradient(model, plan, window, h, none, result)
            curvature = weight + as_starts(model, weight, window, h[:, :k], begin)
        first = first or result
        targets.step(gradient * (weight / curvature))  # of a length of 1/λ, if no other is written
    h = targets.h
    arrive = ask_right(plan, window, h, none, neighbours)
    theta.begin(window.inputs, window.tokens)
    result = blocks_pass(
        model, plan.terms, window, h[:, :k], h, none, plan.chunk_blocks,
        to_theta=True, arrive=arrive, before_last=theta.last_pass,
    )  # fmt: skip
    theta.step(window.tokens)
    targets.save()
    last = result.predictions[:, -1]
    keep(plan, begin, boundaries, h[:, :k], last)
    return Outcome(
        result.loss,
        result.penalty,
        residuals=squared_residuals(plan, window, h, result.predictions, None, neighbours),
        dual=squared_change(plan, window, (first or result).predictions, result.predictions),
        carry=neighbours.around(last.clone()),
    )


def as_starts(model: LanguageModel, weight: float, window: Window, start: Tensor, seed: int) -> Tensor:
    """Estimate of the diagonal of every boundary's Gauss-Newton matrix as a start: start [S, k, d] -> [S, k+1, d].

    weight: λ. The seed is the window's place, so that a resumed run draws what an undisturbed one does. Boundary k is
    nobody's start here: 0.
    """
    generator = torch.Generator(start.device).manual_seed(seed)
    leaf = start.reshape(-1, start.shape[-1]).detach().clone().requires_grad_()
    coupled, real = window.coupled[:, 1:].reshape(-1, 1), window.labels.flatten() >= 0
    with torch.enable_grad():
        h, prediction = model.unroll(window.inputs.flatten(1), leaf)
    with torch.no_grad():
        upto = model.logits(h).flatten(0, 1).softmax(-1).cumsum(-1)  # a draw by it is 20 times as fast as multinomial's
    level = torch.rand(len(upto), 1, generator=generator, dtype=upto.dtype, device=leaf.device) * upto[:, -1:]
    labels = torch.searchsorted(upto, level)[:, 0].where(real, window.labels.flatten())
    signs = torch.randint(2, prediction.shape, generator=generator, device=leaf.device).to(leaf.dtype) * 2 - 1
    with torch.enable_grad():
        loss = model.loss(h, labels) + math.sqrt(weight) * (signs * coupled * prediction).sum()
    squares = torch.autograd.grad(loss, leaf)[0].square()
    return torch.nn.functional.pad(squares.view(start.shape), (0, 0, 0, 1))

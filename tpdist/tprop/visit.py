"""One visit of a window: the meta-algorithm of Section 3, for every gradient-based method.

first H → (H-step)* → (θ-step)* → duals. What the methods are made of:

    bptt     θ-steps alone, λ = 0
    pm       H-steps, θ-steps                            (penalty method)
    admm     H-steps, θ-steps, a dual step               (alternating direction method of multipliers)
    alm      steps on H and θ jointly, then a dual step  (augmented Lagrangian method)
    costate  costate sweeps, θ-steps                     (ours)

Shape letters: `window.py`.
"""

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.costate import costate_sweeps
from tpdist.tprop.h_steps import Targets, ask_right, dual_ascent, h_gradient, h_step
from tpdist.tprop.in_place import visit_in_place, works_in_place
from tpdist.tprop.in_place_held import visit_held_in_place
from tpdist.tprop.objective import Pass, blocks_pass
from tpdist.tprop.outcome import Outcome, squared_change, squared_residuals
from tpdist.tprop.plan import Plan
from tpdist.tprop.prediction import at_boundaries, predict_across
from tpdist.tprop.rollout import RollOut
from tpdist.tprop.states import Boundaries, first_values, keep
from tpdist.tprop.theta import Theta
from tpdist.tprop.window import Neighbours, Window, nothing


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
    """Train on one window once. begin: its first place in `boundaries`; carried: [S, d]. Changes θ and `boundaries`.

    Raises BlowUpError as `Theta.step` does; `boundaries` are then as they were, unless the visit works in place.
    """
    if works_in_place(plan, window, boundaries):
        in_place = visit_held_in_place if plan.held else visit_in_place
        return in_place(model, plan, theta, window, boundaries, carried, neighbours)
    k, held = window.blocks, plan.held
    values = h = first_values(model, plan, window, begin, boundaries, carried, neighbours)
    closing = plan.closing and neighbours.is_last
    has_duals = plan.keep_duals or plan.dual is not None
    dual = _kept(boundaries.u, h, begin, closing) if has_duals else h.new_zeros(()).expand_as(h)
    start = h[:, :k]
    moving = plan.moves_targets and window.movable_at_all
    rolled = _roll_out_once(model, plan, window, start, moving)
    stored = None if boundaries.costate is None else boundaries.costate[:, begin : begin + k + 1]
    costate = costate_sweeps(model, plan, window, start, stored, neighbours, rolled)
    targets = Targets(plan.h, h, window.movable, boundaries, begin, closing) if moving else None
    first: Tensor | None = None  # ĥ of the first pass
    result: Pass | None = None

    if targets is not None:
        for _ in range(plan.h_steps):
            arrive = ask_right(plan, window, targets.h, dual, neighbours)
            predictions = h_step(model, plan, window, start, targets, dual, neighbours, rolled, arrive)
            first = predictions if first is None else first
            start = start if held else targets.h[:, :k]
        h = targets.h

    dual_step = plan.dual if window.constrained else None
    states: dict[str, Tensor] = {}
    read = h  # the targets that the last pass read
    fresh = None  # predictions at boundaries after the last change of θ and H
    if dual_step and dual_step.before_theta:
        dual, _ = _step_duals(model, plan, window, start, h, dual, neighbours)
    joint = targets if plan.joint else None  # they move with θ
    for i in range(plan.theta_steps):
        arrive = ask_right(plan, window, h, dual, neighbours) if i == 0 or plan.joint else nothing
        theta.begin(window.inputs, window.tokens)
        result = blocks_pass(
            model, plan.terms, window, start, h, dual, plan.chunk_blocks, costate,
            to_start=joint is not None or plan.edge_costate, to_theta=True, rolled=rolled,
            neighbours=None if joint is None else neighbours, arrive=arrive, before_last=theta.last_pass,
        )  # fmt: skip
        first, read, rolled = result.predictions if first is None else first, h, None
        states = {"first": values, "start": start, "target": h, "dual": dual}
        states |= {} if costate is None else {"costate": costate}
        if joint is not None:
            joint.step(h_gradient(model, plan, window, h, dual, result))
            h = joint.h
            start = start if held else h[:, :k]
        theta.step(window.tokens, states)
    if dual_step and not dual_step.before_theta:
        dual, fresh = _step_duals(model, plan, window, start, h, dual, neighbours)
    assert first is not None
    assert result is not None  # theta_steps >= 1

    if targets is not None:
        targets.save()
    keep(plan, begin, boundaries, start, result.predictions[:, -1])
    if boundaries.u is not None:
        boundaries.u[:, begin : begin + k + closing] = dual[:, : k + closing]
    if boundaries.costate is not None and costate is not None:
        boundaries.costate[:, begin : begin + k] = costate[:, :k]
        if plan.edge_costate:  # the last backward pass has gone through the first block too, by one sweep more
            assert result.start_gradient is not None
            boundaries.costate[:, begin] = result.start_gradient[:, 0]
    return Outcome(
        loss=result.loss,
        penalty=result.penalty,
        residuals=squared_residuals(plan, window, read if fresh is None else h, result.predictions, fresh, neighbours),
        dual=squared_change(plan, window, first, result.predictions if fresh is None else fresh[:, 1:]),
        carry=neighbours.around(result.predictions[:, -1].clone()),
        states=states,
    )


def _roll_out_once(model: LanguageModel, plan: Plan, window: Window, start: Tensor, moving: bool) -> RollOut | None:
    """One roll-out for all passes until θ moves, where there are several and they start from the same states."""
    several = (plan.sweeps > 0 and window.constrained) or (moving and plan.held and plan.h_steps > 0)
    fits = start.shape[0] * start.shape[1] <= plan.chunk_blocks
    return RollOut(model, plan.terms, window, start) if several and fits else None


def _kept(stored: Tensor | None, h: Tensor, begin: int, closing: bool) -> Tensor:
    """What `stored` holds of this window's boundaries, else 0: [S, k+1, d]."""
    values = torch.zeros_like(h)
    if stored is not None:
        count = h.shape[1] - 1 + closing
        values[:, :count] = stored[:, begin : begin + count]
    return values


def _step_duals(
    model: LanguageModel,
    plan: Plan,
    window: Window,
    start: Tensor,
    h: Tensor,
    dual: Tensor,
    neighbours: Neighbours,
) -> tuple[Tensor, Tensor]:
    """u ← u + α λ (h - ĥ) with a fresh ĥ, the recurrence alone (Boyd et al. 2011, Section 3.1.1).

    Eq. 7 as printed drops -λ/2 ‖u‖², and its literal gradient λ(r + u) diverges. -> u, ĥ, both [S, k+1, d].
    """
    predictions, from_left = predict_across(model, window.inputs, start, plan.chunk_blocks, neighbours)
    at = at_boundaries(predictions, from_left())
    del predictions
    return dual + dual_ascent(plan, h - at, window.coupled), at

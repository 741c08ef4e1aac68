"""Method `als`: least squares in turn for linear cells (the paper's footnote 1; Eq. 8, B = 1).

The cross entropy is not quadratic. Its Hessian in the logits is at most ½ I (Böhning 1992, Annals of the Institute
of Statistical Mathematics 44), so that

    CE(z) ≤ CE(z₀) + g·(z - z₀) + ¼ ‖z - z₀‖²,     g = softmax(z₀) - onehot,

with equality at z₀. Every half below takes this majoriser of the objective Σ CE + λ/2 Σ ‖h - ĥ‖² at the present
point and minimises it exactly over some variables; the objective itself then never rises. In turn:

    H           even boundaries at once, then odd ones: given their neighbours they do not know each other
    recurrence  elman: (W_h, W_x, b) at once. mrnn: W_h, then W_x, then (α, β_h, β_x, b), row by row
    embedding   type by type
    head        (W_y, b_y), with h where the loss sits on targets and ĥ at the ends of streams

Where no constraint follows, the token's loss sits on ĥ = J h + c itself; there ¼ ‖W_y Δĥ‖² is majorised once more
by ¼ ‖W_y‖² ‖Δĥ‖² (spectral norm), so every block, constrained or not, is a row of one weighted least squares
problem: weight w and pull w·(s - ĥ), s the working target.

Each problem is solved for the change of its variables, with a proximal ridge (`solve`) on that change: it keeps
what no token speaks of where it is, and does not bend the fixed point. Normal equations are sums over blocks, so
workers add theirs up with one `reduce` for each group of parameters.

Shape letters: `window.py`, `tpdist.models.cells`; n blocks at once, p features of a row.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.als_equations import NUMBERS, cell_of, parameter_groups, row_weights, slope_of_recurrent, solve
from tpdist.tprop.h_steps import ask_right, h_gradient
from tpdist.tprop.objective import blocks_pass, frozen
from tpdist.tprop.outcome import Outcome, by_place
from tpdist.tprop.parts import chunks
from tpdist.tprop.plan import Plan
from tpdist.tprop.prediction import predict
from tpdist.tprop.states import Boundaries, first_values, keep
from tpdist.tprop.window import Neighbours, Window

Reduce = Callable[[Sequence[Tensor]], None]


def als_visit(
    model: LanguageModel,
    plan: Plan,
    window: Window,
    begin: int,
    boundaries: Boundaries,
    carried: Tensor,
    neighbours: Neighbours,
    reduce: Reduce | None = None,
) -> Outcome:
    """One alternation over one window: H, then `theta_steps` times θ. Arguments, changes and result as in `visit`.

    reduce: adds up a list of tensors over all workers, in place. The loss and the penalty are those between the
    two halves. No H-step, θ-gradient or learning rate is used.
    """
    k = window.blocks
    h = first_values(model, plan, window, begin, boundaries, carried, neighbours)
    nothing = torch.zeros_like(h)
    with frozen(model):
        for parity in (0, 1):
            ask_right(plan, window, h, nothing, neighbours)()
            h = h + step_h(model, plan, window, h, parity, neighbours)
        ask_right(plan, window, h, nothing, neighbours)()
        between = blocks_pass(model, plan.terms, window, h[:, :k], h, nothing, plan.chunk_blocks)
    with torch.no_grad():
        for _ in range(plan.theta_steps):
            for equations, step in parameter_groups(model):
                sums = equations(model, plan, window, h)
                if reduce is not None:
                    reduce(sums)
                step(model, sums)
    after = predict(model, window.inputs, h[:, :k], plan.chunk_blocks)
    coupled = window.coupled[:, 1:, None]
    keep(plan, begin, boundaries, h[:, :k], after[:, -1])
    return Outcome(
        loss=between.loss,
        penalty=between.penalty,
        residuals=by_place(plan, ((h[:, 1:] - after).square() * coupled).sum(-1), window.offset + 1),
        dual=plan.terms.weight**2 * ((after - between.predictions).square() * coupled).sum(),
        carry=neighbours.around(after[:, -1].clone()),
        states={"start": h[:, :k], "target": h, "dual": nothing},
    )


def step_h(model: LanguageModel, plan: Plan, window: Window, h: Tensor, parity: int, neighbours: Neighbours) -> Tensor:
    """The change of every movable target of one parity that minimises the majoriser: h [S, k+1, d] -> the same.

    The majoriser touches the objective at h, so its gradient there is the objective's. Normal matrix of a
    boundary: ½ W_yᵀW_y + λ I as the target of the block before, w JᵀJ as the start of its own block.
    """
    k, d = window.blocks, h.shape[2]
    nothing = torch.zeros_like(h)
    result = blocks_pass(
        model, plan.terms, window, h[:, :k], h, nothing, plan.chunk_blocks, to_start=True, neighbours=neighbours
    )
    gradient = h_gradient(model, plan, window, h, nothing, result)[:, :k]
    place = window.offset + torch.arange(k, device=h.device)
    chosen = window.movable[:, :k] & (place % 2 == parity)
    gain = slope_of_recurrent(model, window.inputs[0][chosen])
    weight = row_weights(model, plan, window)[chosen]
    coupled = window.coupled[:, :k][chosen]
    as_target = 0.5 * model.weight.T @ model.weight + plan.terms.weight * torch.eye(d).to(h)
    recurrent = cell_of(model).recurrent.weight
    moved = gradient[chosen]
    for c in chunks(len(moved), max(1, NUMBERS // d**2)):
        jacobian = gain[c, :, None] * recurrent
        normal = coupled[c, None, None] * as_target + weight[c, None, None] * (jacobian.mT @ jacobian)
        moved[c] = -solve(normal, moved[c])
    change = torch.zeros_like(h)
    change[:, :k][chosen] = moved
    return change

"""Appendix A.1 of the paper, Eq. 8-11: where it holds exactly, and what moving the starts too does to it.

Setting: Eq. 8, whose loss sits on h_t; B = 1; h rolled out exactly; duals zero; one plain-gradient H-step.
"""

from dataclasses import replace

import pytest
import torch
from problems import BLOCKS, STREAMS, Problem, relative_error
from torch import Tensor

from tpdist.config import BUILT_IN_CELLS
from tpdist.models import IGNORED
from tpdist.tprop import Alone, Boundaries, visit

CELLS = {
    **{cell: {"cell": cell} for cell in BUILT_IN_CELLS},
    "elman-linear": {"cell": "elman", "activation": "identity"},
    "gru-2": {"cell": "gru", "layers": 2},
}


def appendix(cell: str, lr: float, weight: float, starts: str) -> Problem:
    """The setting of A.1. The window's last token is left out: no constraint follows it, so its loss is Eq. 3's."""
    problem = Problem(
        model=CELLS[cell],
        objective={"block": 1, "loss_on": "target", "weight": weight},
        method={"name": "pm", "h_steps": 1, "starts": starts, "first": "forward", "h_optimizer": {"lr": lr}},
    )
    labels = problem.window.labels.clone()
    labels[:, :, -1] = IGNORED
    problem.window = replace(problem.window, labels=labels)
    return problem


def recurrence(problem: Problem) -> list[Tensor]:
    """θ of A.1: "the parameters of g"."""
    return [p for name, p in problem.model.named_parameters() if name not in ("weight", "bias")]


def visited_gradients(problem: Problem) -> list[Tensor]:
    """The θ-gradient after the H-step, undivided. On g's parameters it is the penalty's alone: Eq. 8's loss is on h."""
    boundaries = Boundaries.for_plan(problem.plan, STREAMS, BLOCKS, problem.model)
    visit(problem.model, problem.plan, problem.theta, problem.window, 0, boundaries, problem.carried, Alone())
    return [p.grad.clone() * problem.window.tokens for p in recurrence(problem) if p.grad is not None]


def per_step_gradients(problem: Problem) -> list[Tensor]:
    """Σ_t ∂ℓ(g(x_t, h_{t-1}), y_t)/∂θ with h_{t-1} a constant: the right-hand side of Eq. 9 without ηλ."""
    state, total = problem.carried, torch.zeros((), dtype=torch.float64)
    for t in range(BLOCKS - 1):
        h, new = problem.model.unroll(problem.window.inputs[:, :, t], state)
        logits = problem.model.logits(h[0])
        total = total + torch.nn.functional.cross_entropy(logits, problem.window.labels[0, :, t], reduction="sum")
        state = new.detach()
    return list(torch.autograd.grad(total, recurrence(problem)))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("lr", "weight"), [(1.0, 1.0), (0.03, 0.5), (0.7, 20.0), (5.0, 0.01)])
def test_the_penalty_gradient_is_eta_lambda_times_the_loss_gradient(cell: str, lr: float, weight: float) -> None:
    problem = appendix(cell, lr, weight, "held")
    got = visited_gradients(problem)
    wanted = [lr * weight * g for g in per_step_gradients(problem)]
    assert relative_error(got, wanted) < 1e-12


@pytest.mark.parametrize("cell", CELLS)
def test_not_so_when_the_start_moves_with_the_target(cell: str) -> None:
    """A.1 moves h_t as a target and silently leaves h_{t-1} on the right-hand side; the algorithm moves both."""
    problem = appendix(cell, 0.7, 1.0, "tied")
    got = visited_gradients(problem)
    wanted = [0.7 * g for g in per_step_gradients(problem)]
    assert relative_error(got, wanted) > 1e-2


def test_the_error_of_tied_starts_does_not_vanish_with_eta() -> None:
    errors = []
    for lr in (1e-2, 1e-4, 1e-6):
        problem = appendix("gru", lr, 1.0, "tied")
        got = visited_gradients(problem)
        errors.append(relative_error(got, [lr * g for g in per_step_gradients(problem)]))
    assert errors[-1] == pytest.approx(errors[-2], rel=1e-2)
    assert errors[-1] > 1e-2


def test_not_so_from_states_that_are_not_rolled_out() -> None:
    """Condition (1) of A.1: with zero first values the residual is not what the H-step made."""
    problem = appendix("gru", 0.7, 1.0, "held")
    problem.replan(first="zero")
    assert relative_error(visited_gradients(problem), [0.7 * g for g in per_step_gradients(problem)]) > 1e-2

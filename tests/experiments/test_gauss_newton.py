"""Gauss-Newton H-steps: the curvature against one worked out in full, the visit against the plain one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import BLOCKS, STREAMS, Problem, relative_error
from torch import Tensor
from torch.autograd.functional import jacobian

from tpdist.errors import ConfigError
from tpdist.experiments import gauss_newton
from tpdist.tprop import Alone, Boundaries, visit

WEIGHT = 0.5
DRAWS = 2_000
SETTING: dict[str, Any] = {
    "objective": {"weight": WEIGHT},
    "method": {"name": "pm", "starts": "tied", "h_steps": 2, "first": "forward"},
}


def in_full(problem: Problem, start: Tensor) -> Tensor:
    """diag(Σ_t A_tᵀ (diag p - p pᵀ) A_t + λ JᵀJ) of every block, from whole Jacobians: start [S, k, d] -> the same."""
    model, window = problem.model, problem.window
    diagonal = torch.zeros_like(start)
    for s in range(STREAMS):
        for i in range(BLOCKS):
            ids = window.inputs[:, s, i, None]
            of_logits = jacobian(lambda h, ids=ids: model.logits(model.unroll(ids, h[None])[0])[:, 0], start[s, i])
            of_prediction = jacobian(lambda h, ids=ids: model.unroll(ids, h[None])[1][0], start[s, i])
            for a, p in zip(of_logits, model.logits(model.unroll(ids, start[s, i, None])[0])[:, 0], strict=True):
                q = p.softmax(0)
                diagonal[s, i] += (a.T @ (q.diag() - q.outer(q)) @ a).diag()
            diagonal[s, i] += WEIGHT * (of_prediction.T @ of_prediction).diag() * window.coupled[s, i + 1]
    return diagonal.detach()


def on_average(problem: Problem, weight: float, start: Tensor) -> Tensor:
    """The mean of many draws: those of a window whose streams are there as many times."""
    window = problem.window
    inputs, labels = (x.repeat(1, DRAWS, 1) for x in (window.inputs, window.labels))
    many = replace(window, inputs=inputs, labels=labels, coupled=window.coupled.repeat(DRAWS, 1))
    found = gauss_newton.as_starts(problem.model, weight, many, start.repeat(DRAWS, 1, 1), seed=0)
    return found.unflatten(0, (DRAWS, STREAMS)).mean(0)


def test_curvature_is_the_diagonal_on_average():
    problem = Problem(**SETTING)
    start = problem.carried[:, None].expand(-1, BLOCKS, -1).contiguous()
    wanted = in_full(problem, start)
    got = on_average(problem, WEIGHT, start)
    assert torch.equal(got[:, BLOCKS], torch.zeros_like(got[:, 0]))
    torch.testing.assert_close(got[:, :BLOCKS], wanted, rtol=0.2, atol=0.01 * float(wanted.max()))


def test_the_penaltys_curvature_is_whole():
    """Where λ is so large that the loss counts for nothing."""
    problem = Problem(**SETTING)
    start = problem.carried[:, None].expand(-1, BLOCKS, -1).contiguous()
    weights = (WEIGHT, 1000 * WEIGHT)
    small, large = (on_average(problem, weight, start) for weight in weights)
    of_penalty = (large - small)[:, :BLOCKS] / (weights[1] - weights[0])
    wanted = torch.zeros_like(of_penalty)
    for s in range(STREAMS):
        for i in range(BLOCKS):
            ids = problem.window.inputs[:, s, i, None]
            j = jacobian(lambda h, ids=ids: problem.model.unroll(ids, h[None])[1][0], start[s, i])
            wanted[s, i] = (j.T @ j).diag() * problem.window.coupled[s, i + 1]
    torch.testing.assert_close(of_penalty, wanted, rtol=0.08, atol=0.02 * float(wanted.max()))


def test_without_curvature_of_starts_the_visit_is_that_of_plain_steps(monkeypatch):
    """Two tied steps of 1/λ: the same θ-gradient, targets, residuals."""
    zero = lambda model, weight, window, start, seed: torch.zeros_like(start[:, :1]).expand(-1, BLOCKS + 1, -1)  # noqa: E731
    monkeypatch.setattr(gauss_newton, "as_starts", zero)
    found = []
    for one in (gauss_newton.visit, visit):
        problem = Problem(**SETTING)
        problem.replan(first="persistent", relaxation=0)
        boundaries = Boundaries.for_plan(problem.plan, STREAMS, BLOCKS, problem.model)
        outcome = one(
            problem.model, problem.plan, problem.theta, problem.window, 0, boundaries, problem.carried, Alone()
        )
        found.append((problem.gradients(), boundaries.h, outcome))
    (got, h, outcome), (wanted, wanted_h, plain) = found
    assert relative_error(got, wanted) < 1e-12
    assert h is not None
    torch.testing.assert_close(h, wanted_h, rtol=0, atol=1e-12)
    for name in ("loss", "penalty", "residuals", "dual", "carry"):
        torch.testing.assert_close(getattr(outcome, name), getattr(plain, name), rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("other", [{"starts": "held"}, {"theta_steps": 2}, {"name": "admm"}])
def test_what_it_would_not_follow_is_refused(other: dict[str, Any]):
    problem = Problem(**{**SETTING, "method": {**SETTING["method"], **other}})
    boundaries = Boundaries.for_plan(problem.plan, STREAMS, BLOCKS, problem.model)
    (key,) = other
    with pytest.raises(ConfigError) as caught:
        gauss_newton.visit(
            problem.model, problem.plan, problem.theta, problem.window, 0, boundaries, problem.carried, Alone()
        )
    assert caught.value.key == f"method.{key}"

"""One roll-out that serves a whole visit against passes that roll out anew, chunk by chunk; in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import BLOCKS, STREAMS, TYPES, Problem
from torch import Tensor

from tpdist.models import build_model
from tpdist.tprop import Alone, Boundaries, Theta, visit
from tpdist.tprop.rollout import RollOut

METHODS: dict[str, dict[str, Any]] = {
    "pm": {"name": "pm", "h_steps": 3, "h_optimizer": {"lr": 0.3}},
    "admm": {"name": "admm", "h_steps": 2, "first": "persistent"},
    "admm, two theta steps": {"name": "admm", "h_steps": 1, "theta_steps": 2},
    "admm, duals first": {"name": "admm", "dual": {"order": "before"}},
    "admm, bounded": {"name": "admm", "h_steps": 2, "bounded": True, "h_optimizer": {"name": "adagrad", "lr": 0.1}},
    "costate": {"name": "costate"},
    "costate, kept": {"name": "costate", "sweeps": 1, "keep_costates": True},
    "closing": {"name": "pm", "h_steps": 2, "closing": True},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "l2": {"weight": 0.7},
    "l2+kl": {"weight": 0.7, "penalty": "l2+kl"},
    "on targets": {"weight": 0.7, "loss_on": "target"},
}
MODELS = {"gru": {}, "lstm, 2 layers": {"cell": "lstm", "layers": 2}, "tied mrnn": {"cell": "mrnn", "tied": True}}
CASES = [
    (method, objective, model)
    for method in METHODS
    for objective in OBJECTIVES
    for model in MODELS
    if not (method == "closing" and objective == "on targets") and not (method.endswith("bounded") and "lstm" in model)
]


def after_visits(problem: Problem, chunk_blocks: int) -> list[Tensor]:
    """θ, what is kept, and the figures of three visits."""
    model = build_model(problem.config.model, problem.config.run, TYPES)
    plan = replace(problem.plan, chunk_blocks=chunk_blocks)
    theta = Theta(model, problem.config.optimizer)
    boundaries, carried = Boundaries.for_plan(plan, STREAMS, BLOCKS, model), problem.carried
    found = []
    for _visit in range(3):
        outcome = visit(model, plan, theta, problem.window, 0, boundaries, carried, Alone())
        carried = outcome.carry
        found += [outcome.loss, outcome.penalty, outcome.primal, outcome.dual, outcome.carry]
    return found + [p.detach() for p in model.parameters()] + list(boundaries.tensors().values())


@pytest.mark.parametrize(("method", "objective", "model"), CASES)
def test_one_roll_out_computes_what_many_do(method: str, objective: str, model: str, monkeypatch) -> None:
    problem = Problem(
        method=METHODS[method],
        objective=OBJECTIVES[objective],
        model=MODELS[model],
        optimizer={"name": "sgd", "lr": 0.5, "clip": None},
    )
    made: list[RollOut] = []
    create = RollOut.__init__
    monkeypatch.setattr(RollOut, "__init__", lambda self, *a: (made.append(self), create(self, *a))[1])
    slow = after_visits(problem, chunk_blocks=3)
    assert not made
    fast = after_visits(problem, chunk_blocks=1000)
    assert len(made) == 3
    for a, b in zip(slow, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["admm", "costate"])
def test_the_head_is_passed_once_a_visit(name: str, monkeypatch) -> None:
    problem = Problem(method={"name": name}, objective={"weight": 0.7})
    passes = []
    loss = problem.model.loss
    monkeypatch.setattr(problem.model, "loss", lambda *a: (passes.append(1), loss(*a))[1])
    boundaries = Boundaries.for_plan(problem.plan, STREAMS, BLOCKS, problem.model)
    visit(problem.model, problem.plan, problem.theta, problem.window, 0, boundaries, problem.carried, Alone())
    assert len(passes) == 1

"""Duals: ADMM and ALM reach the KKT point of a convex problem; the sign, the scaling, the clip, the order."""

from typing import Any

import pytest
import torch
from problems import experiment, make_stream, windows_of
from torch import Tensor

from tpdist.models import IGNORED, Elman, LanguageModel, build_model
from tpdist.tprop import Alone, Boundaries, Plan, Theta, Window, plan_epoch, visit

TYPES, HIDDEN, B, S, K = 4, 2, 2, 2, 3


class SquaredLoss(LanguageModel):
    """½ ‖W_y h + b_y - onehot(x_{t+1})‖², so that the whole problem is quadratic."""

    def loss(self, h: Tensor, labels: Tensor) -> Tensor:
        wanted = torch.nn.functional.one_hot(labels.clamp(min=0), TYPES).to(h.dtype)
        return 0.5 * ((self.logits(h) - wanted).square().sum(-1) * (labels != IGNORED)).sum()


def convex_model() -> SquaredLoss:
    """A linear cell with θ = W_x and b; W_h, the embedding and the head stay."""
    model = SquaredLoss(TYPES, 2, [Elman(2, HIDDEN, "identity")]).double()
    fixed = {
        "embedding.weight": [[1, 0], [0, 1], [-1, 0], [0, -1]],
        "layers.0.recurrent.weight": [[0.6, 0.3], [-0.3, 0.6]],
        "layers.0.input.weight": [[0.4, -1.0], [0.8, 0.3]],
        "layers.0.input.bias": [0.5, -0.5],
        "weight": [[1, 0.1], [-0.2, 1], [0.4, -0.6], [0.3, 0.3]],
        "bias": [0.1, -0.2, 0.3, 0.0],
    }
    model.load_state_dict({name: torch.tensor(value).double() for name, value in fixed.items()})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("layers.0.input"))
    return model


def window() -> Window:
    return windows_of(make_stream(S, K * B, TYPES), B, K)[0]


def rolled(model: LanguageModel, w: Window, states: list[Tensor] | None = None) -> Tensor:
    """Eq. 3 over the window; `states` collects the boundaries 0..K."""
    state, total = model.zero_state(S), torch.zeros(()).double()
    for i in range(K):
        if states is not None:
            state = state if state.requires_grad else state.requires_grad_()
            states.append(state)
        h, state = model.unroll(w.inputs[:, :, i], state)
        total = total + model.loss(h, w.labels[:, :, i])
    return total


def least_squares(model: LanguageModel, w: Window) -> Tensor:
    """θ* by one Newton step on a quadratic, which is a least squares solution."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    sizes = [p.numel() for p in parameters]
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    start = torch.cat([p.detach().reshape(-1) for p in parameters])

    def loss(theta: Tensor) -> Tensor:
        values = {n: t.view(p.shape) for n, p, t in zip(names, parameters, theta.split(sizes), strict=True)}
        return torch.func.functional_call(_Rolled(model, w), {f"model.{n}": v for n, v in values.items()}, ())

    gradient = torch.autograd.functional.jacobian(loss, start)
    hessian = torch.autograd.functional.hessian(loss, start)
    return start - torch.linalg.lstsq(hessian, gradient[:, None]).solution[:, 0]  # type: ignore[arg-type,index]


class _Rolled(torch.nn.Module):
    def __init__(self, model: LanguageModel, w: Window):
        super().__init__()
        self.model, self.w = model, w

    def forward(self) -> Tensor:
        return rolled(self.model, self.w)


def plan_for(method: dict[str, Any], weight: float) -> Plan:
    config = experiment(
        objective={"block": B, "weight": weight},
        method={"first": "persistent", "relaxation": 0, "starts": "tied", **method},
        batching={"streams": S, "blocks": K},
    )
    return plan_epoch(config, 1, K)


def train(plan: Plan, visits: int, lr: float) -> tuple[SquaredLoss, Boundaries, list[float]]:
    model, w = convex_model(), window()
    config = experiment(optimizer={"name": "sgd", "lr": lr * w.tokens, "clip": None})
    theta = Theta(model, config.optimizer)
    boundaries = Boundaries.for_plan(plan, S, K, model)
    primal = []
    for _ in range(visits):
        primal.append(float(visit(model, plan, theta, w, 0, boundaries, model.zero_state(S), Alone()).primal))
    return model, boundaries, primal


@pytest.mark.parametrize(
    ("method", "weight", "h_lr", "theta_lr"),
    [
        ({"name": "admm", "h_steps": 6, "theta_steps": 6}, 1.0, 0.35, 0.03),
        ({"name": "admm", "h_steps": 6, "theta_steps": 6}, 3.0, 0.12, 0.02),
        ({"name": "alm", "theta_steps": 8}, 2.0, 0.2, 0.03),
    ],
    ids=["admm-1", "admm-3", "alm-2"],
)
def test_reaches_the_kkt_point(method: dict[str, Any], weight: float, h_lr: float, theta_lr: float) -> None:
    model, boundaries, primal = train(plan_for({**method, "h_optimizer": {"lr": h_lr}}, weight), 45, theta_lr)
    w = window()
    assert primal[-1] < 1e-16
    got = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(got, least_squares(convex_model(), w), rtol=1e-9, atol=1e-9)
    # the multiplier of h_i = ĥ_i is minus the costate, ∂L_{≥i}/∂h_i
    states: list[Tensor] = []
    total = rolled(model, w, states)
    costates = torch.autograd.grad(total, states[1:])
    assert boundaries.u is not None
    assert boundaries.h is not None
    for i, delta in enumerate(costates, 1):
        assert float(delta.abs().max()) > 1e-2
        torch.testing.assert_close(weight * boundaries.u[:, i], -delta, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(boundaries.h[:, i], states[i].detach(), rtol=1e-9, atol=1e-9)


def test_pm_does_not_reach_it() -> None:
    method = {"name": "pm", "h_steps": 6, "theta_steps": 6, "h_optimizer": {"lr": 0.35}}
    _, _, primal = train(plan_for(method, 1.0), 40, 0.03)
    assert primal[-1] == pytest.approx(primal[-10], rel=1e-3)
    assert primal[-1] > 1e-3


def one_step(**dual: Any) -> tuple[Plan, Tensor, Tensor, Tensor]:
    """One ADMM visit with zero first values and no H-step -> plan, u before and after it, r inside the window."""
    config = experiment(
        method={"name": "admm", "h_steps": 0, "first": "zero", "dual": dual},
        objective={"block": B, "weight": 2.0},
        batching={"streams": S, "blocks": K},
        optimizer={"lr": 0.3},
    )
    plan = plan_epoch(config, 1, K)
    model = build_model(config.model, config.run, TYPES)
    boundaries = Boundaries.for_plan(plan, S, K, model)
    assert boundaries.u is not None
    boundaries.u += torch.randn(boundaries.u.shape, generator=torch.Generator().manual_seed(1))
    u, w = boundaries.u.clone(), window()
    if plan.dual is not None and plan.dual.before_theta:
        residual = -model.unroll(w.inputs.flatten(1), model.zero_state(S * K))[1].detach()
    visit(model, plan, Theta(model, config.optimizer), w, 0, boundaries, model.zero_state(S), Alone())
    if plan.dual is None or not plan.dual.before_theta:
        residual = -model.unroll(w.inputs.flatten(1), model.zero_state(S * K))[1].detach()
    return plan, u, boundaries.u, residual.view(S, K, -1)[:, :-1]  # type: ignore[possibly-undefined]


@pytest.mark.parametrize("order", ["after", "before"])
@pytest.mark.parametrize("lr", [None, 0.05])
def test_the_step(order: str, lr: float | None) -> None:
    """u ← u + α λ r with the ĥ of the present θ; Boyd's α = 1/λ by default."""
    _, before, after, residual = one_step(order=order, lr=lr)
    alpha = 1 / 2.0 if lr is None else lr
    torch.testing.assert_close(after[:, 1:K] - before[:, 1:K], alpha * 2.0 * residual, rtol=1e-12, atol=1e-12)
    assert torch.equal(after[:, 0], before[:, 0])


def test_the_clip_bounds_lambda_r_of_one_boundary() -> None:
    _, before, after, residual = one_step(clip=0.3, lr=0.5)
    ascent = 2.0 * residual
    assert float(ascent.norm(dim=-1).min()) > 0.3
    wanted = 0.5 * 0.3 * ascent / ascent.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(after[:, 1:K] - before[:, 1:K], wanted, rtol=1e-12, atol=1e-12)


def test_no_step_before_the_start_epoch() -> None:
    plan, before, after, _ = one_step(start_epoch=3)
    assert plan.dual is None
    assert torch.equal(before, after)
    config = experiment(method={"name": "admm", "dual": {"start_epoch": 3}})
    assert [plan_epoch(config, epoch, K).dual is not None for epoch in (1, 2, 3, 4)] == [False, False, True, True]


@pytest.mark.parametrize(("steps", "same"), [(K - 1, True), (K - 2, False)])
def test_held_steps_through_the_window_leave_duals_nothing_to_carry(steps: int, same: bool) -> None:
    """Plain steps of 1/λ: a boundary's own dual cancels, t + u = ĥ - δ/λ, and δ comes from the right, step by step.

    So a dual is read as the costate of the visit before, by boundaries that the steps have not reached.
    """
    learned = []
    for name in ("pm", "admm"):
        config = experiment(
            objective={"block": B, "weight": 0.7},
            method={"name": name, "h_steps": steps, "first": "persistent", "relaxation": 1, "starts": "held"},
            batching={"streams": S, "blocks": K},
            optimizer={"name": "sgd", "lr": 0.3},
        )
        plan, model = plan_epoch(config, 1, K), build_model(config.model, config.run, TYPES)
        theta, boundaries = Theta(model, config.optimizer), Boundaries.for_plan(plan, S, K, model)
        for _ in range(3):
            visit(model, plan, theta, window(), 0, boundaries, model.zero_state(S), Alone())
        learned.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*learned, rtol=1e-10, atol=1e-12) is same


def test_a_new_weight_keeps_the_multiplier() -> None:
    """λ u is the multiplier: after a change of λ the gradient λ(r + u) at r = 0 is what it was."""
    config = experiment(method={"name": "admm"}, objective={"block": B, "weight": 0.5, "weight_growth": 1.6})
    first, second = plan_epoch(config, 1, K), plan_epoch(config, 2, K)
    assert second.terms.weight == pytest.approx(0.8)
    model = convex_model()
    boundaries = Boundaries.for_plan(first, S, K, model)
    assert boundaries.u is not None
    boundaries.u += 1.7
    multiplier = first.terms.weight * boundaries.u.clone()
    boundaries.rescale_duals(first.terms.weight, second.terms.weight)
    torch.testing.assert_close(second.terms.weight * boundaries.u, multiplier, rtol=1e-14, atol=0)
    Boundaries().rescale_duals(first.terms.weight, second.terms.weight)  # without duals there is nothing to do


def test_duals_that_are_not_kept_start_at_zero() -> None:
    plan = plan_for({"name": "admm", "dual": {"keep": False}}, 1.0)
    assert plan.dual is None  # stepped last and zeroed at the next visit: never read
    assert Boundaries.for_plan(plan, S, K, convex_model()).u is None
    assert plan_for({"name": "admm", "dual": {"keep": False, "order": "before"}}, 1.0).dual is not None

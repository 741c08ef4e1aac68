"""The H-step's optimiser: bounded states, the clip of one boundary, and a state that is kept from visit to visit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import experiment, make_stream, windows_of
from torch import Tensor

from tpdist.models import build_model
from tpdist.tprop import Boundaries, Plan, plan_epoch
from tpdist.tprop.h_steps import Targets, clip_rows, h_gradient
from tpdist.tprop.objective import blocks_pass
from tpdist.tprop.optimizers import CLASSES
from tpdist.tprop.plan import HStep

S, K, D = 2, 3, 4
OPTIONS: dict[str, list[dict[str, Any]]] = {name: [{}] for name in CLASSES}
OPTIONS["sgd"] += [{"momentum": 0.9}, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}]
OPTIONS["adam"] += [{"amsgrad": True}]
OPTIONS["rmsprop"] += [{"momentum": 0.5, "centered": True}]
OPTIONS["asgd"] += [{"t0": 1.0, "lambd": 0.1}]
CASES = [(name, options) for name, all_options in OPTIONS.items() for options in all_options]


def draws(count: int, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(S, K + 1, D, generator=g, dtype=torch.float64) - 0.5 for _ in range(count)]


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_kept_state_is_that_of_one_optimizer(name: str, options: dict[str, Any]) -> None:
    """Two windows in turn, three visits each, two steps a visit: each like one torch optimiser stepped by hand."""
    spec = HStep(name, 0.1, None, options, keep=True, bounded=False)
    boundaries = Boundaries(h=torch.zeros(S, 2 * K + 1, D, dtype=torch.float64))
    movable = torch.ones(S, K + 1, dtype=torch.bool)
    movable[:, [0, K]] = False
    by_hand = [torch.nn.Parameter(torch.zeros(S, K + 1, D, dtype=torch.float64)) for _ in range(2)]
    optimizers = [CLASSES[name]([p], lr=0.1, **options) for p in by_hand]  # type: ignore[call-arg]
    for visit in range(3):
        for w in range(2):
            (first,) = draws(1, 10 * visit + w)
            with torch.no_grad():
                by_hand[w].copy_(first)
            targets = Targets(spec, first.clone(), movable, boundaries, w * K)
            for gradient in draws(2, 100 + 10 * visit + w):
                targets.step(gradient)
                by_hand[w].grad = gradient * movable[..., None]
                optimizers[w].step()
            targets.save()
            got, wanted = targets.h[:, 1:K], by_hand[w].detach()[:, 1:K]
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
            assert torch.equal(targets.h[:, [0, K]], first[:, [0, K]])
            for kept, moment in boundaries.h_moments.items():  # of what does not move, those of a gradient of 0
                wanted = optimizers[w].state[by_hand[w]][kept][:, :K]
                torch.testing.assert_close(moment[:, w * K : (w + 1) * K], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keep", [False, True])
def test_state_is_kept_only_with_persistent_first_values(keep: bool) -> None:
    config = experiment(
        method={"first": "persistent" if keep else "forward", "h_optimizer": {"name": "adagrad", "lr": 0.1}}
    )
    spec = plan_epoch(config, 1, K).h
    assert spec.keep is keep
    boundaries = Boundaries(h=torch.zeros(S, K + 1, D, dtype=torch.float64))
    lengths = []
    for _ in range(2):
        targets = Targets(spec, torch.zeros(S, K + 1, D).double(), torch.ones(S, K + 1).bool(), boundaries, 0)
        targets.step(torch.ones(S, K + 1, D).double())
        targets.save()
        lengths.append(float(targets.h[0, 1, 0]))
    assert lengths[0] == pytest.approx(-0.1)
    assert lengths[1] == pytest.approx(-0.1 / 2**0.5 if keep else -0.1)


def test_a_closing_target_keeps_its_state() -> None:
    """Adam's first steps along a constant gradient are all as long as its learning rate."""
    spec = HStep("adam", 0.05, None, {}, keep=True, bounded=False)
    boundaries = Boundaries(h=torch.zeros(S, K + 2, D, dtype=torch.float64))
    for _ in range(4):
        targets = Targets(spec, torch.zeros(S, K + 1, D).double(), torch.ones(S, K + 1).bool(), boundaries, 0, True)
        targets.step(torch.ones(S, K + 1, D).double())
        targets.save()
        torch.testing.assert_close(targets.h, torch.full_like(targets.h, -0.05), rtol=1e-6, atol=0)


def test_the_clip_is_per_boundary() -> None:
    gradient = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]])
    wanted = torch.tensor([[[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]])
    torch.testing.assert_close(clip_rows(gradient, 1.0), wanted)
    assert clip_rows(gradient, None) is gradient
    spec = HStep("sgd", 0.5, 1.0, {}, keep=False, bounded=False)
    targets = Targets(spec, torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool), Boundaries(), 0)
    targets.step(gradient)
    torch.testing.assert_close(targets.h, -0.5 * wanted)


def bounded_case() -> tuple[Any, Plan, Any, Tensor]:
    config = experiment(
        model={"hidden": D},
        objective={"block": 2, "weight": 0.7},
        method={"name": "pm", "bounded": True, "starts": "tied", "h_optimizer": {"lr": 0.2}},
        batching={"streams": S, "blocks": K},
    )
    model = build_model(config.model, config.run, 6)
    window = windows_of(make_stream(S, 2 * K, 6), 2, K)[0]
    return model, plan_epoch(config, 1, K), window, 1.8 * draws(1, 1)[0]


@pytest.mark.parametrize("clip", [None, 0.2])
def test_bounded_states_follow_the_gradient_of_z(clip: float | None) -> None:
    """One plain step moves z by -lr ∂L/∂z where h = tanh z; ∂L/∂z by finite differences, clipped."""
    model, plan, window, h = bounded_case()
    zero = torch.zeros_like(h)

    def objective(z: Tensor) -> float:
        at = h.clone()
        at[:, 1:K] = z.tanh()
        result = blocks_pass(model, plan.terms, window, at[:, :K], at, zero, 100)
        return float(result.loss + result.penalty)

    with torch.no_grad():
        z = torch.atanh(h[:, 1:K])
        slopes = torch.zeros_like(z)
        for place in range(z.numel()):
            e = torch.zeros_like(z).view(-1)
            e[place] = 1e-5
            slopes.view(-1)[place] = (objective(z + e.view_as(z)) - objective(z - e.view_as(z))) / 2e-5
    assert float(slopes.norm(dim=-1).max()) > 0.3
    targets = Targets(replace(plan.h, clip=clip), h, window.movable, Boundaries(), 0)
    result = blocks_pass(model, plan.terms, window, h[:, :K], h, zero, 100, to_start=True)
    targets.step(h_gradient(model, plan, window, h, zero, result))
    torch.testing.assert_close(torch.atanh(targets.h[:, 1:K]), z - 0.2 * clip_rows(slopes, clip), rtol=1e-6, atol=1e-8)
    assert torch.equal(targets.h[:, [0, K]], h[:, [0, K]])


def test_bounded_states_may_leave_the_bound() -> None:
    """Where h is 1 in the dtype's rounding, z would be infinite and no step would move it."""
    _, plan, window, h = bounded_case()
    at = h.sign()
    targets = Targets(replace(plan.h, name="adam", lr=4.0), at, window.movable, Boundaries(), 0)
    targets.step(at)
    left = (targets.h / at)[:, 1:K]
    assert ((left > 0) & (left < 1 - 1e-3)).all()


def test_bounded_states_stay_bounded_whatever_the_step() -> None:
    _, plan, window, h = bounded_case()
    targets = Targets(replace(plan.h, lr=4.0), h, window.movable, Boundaries(), 0)
    for gradient in draws(20, 3):
        targets.step(2 * gradient)
    assert float(targets.h[:, 1:K].abs().max()) < 1
    assert float((targets.h - h)[:, 1:K].abs().max()) > 0.1
    free = Targets(replace(plan.h, lr=4.0, bounded=False), h, window.movable, Boundaries(), 0)
    for gradient in draws(20, 3):
        free.step(2 * gradient)
    assert float(free.h.abs().max()) > 1

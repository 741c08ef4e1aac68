"""A visit in place, against `visit` with tensors of its own. `test_workers.py` holds it to one worker's on many."""

import importlib
import itertools
from typing import Any

import pytest
import torch
from problems import experiment, make_stream, windows_of

from tpdist.models import build_model
from tpdist.tprop import Alone, Boundaries, Theta, plan_epoch, visit
from tpdist.tprop.in_place import works_in_place

visits = importlib.import_module("tpdist.tprop.visit")  # the package's `visit` is the function
TYPES, B, K, UPDATES = 6, 2, 7, 4
METHODS: dict[str, dict[str, Any]] = {
    "pm": {"name": "pm"},
    "admm": {"name": "admm", "dual": {"clip": 0.05}},
    "admm-adam": {"name": "admm", "relaxation": 2, "h_optimizer": {"name": "adam", "lr": 0.05, "clip": 0.01}},
    "admm-adagrad": {"name": "admm", "relaxation": 0, "h_optimizer": {"name": "adagrad", "lr": 0.1}},
    "admm-decay": {"name": "admm", "h_optimizer": {"lr": 0.3, "options": {"weight_decay": 0.2}}},
    "recomputed": {"name": "admm"},
    "recomputed-adam": {"name": "admm", "relaxation": 2, "h_optimizer": {"name": "adam", "lr": 0.05}},
    "edge-free": {"name": "admm", "edge_free": True, "starts": "tied"},
}


@pytest.mark.parametrize("starts", ["tied", "held"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("S", "chunk_blocks"), [(2, 4), (3, 2), (1, 3)])
def test_it_leaves_what_a_visit_leaves(
    method: str, starts: str, S: int, chunk_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"first": "persistent", "starts": starts, **METHODS[method]}
    recompute = method.startswith("recomputed")
    if recompute and starts == "tied":
        pytest.skip("tied targets are the states, and are kept")
    if settings["starts"] == "held" and settings.get("relaxation") == 0:
        settings["relaxation"] = 1
    config = experiment(
        model={"cell": "lstm", "hidden": 3, "init": 0.5},
        objective={"block": B, "weight": 0.6},
        method=settings,
        batching={"mode": "batch", "streams": S, "chunk_tokens": B * chunk_blocks, "recompute": recompute},
        optimizer={"name": "adagrad", "lr": 0.1},
    )
    missing = B + 1 if S > 1 else 0  # of the last stream
    window = windows_of(make_stream(S, K * B, TYPES), B, K, missing, edge_free=config.method.edge_free)[0]
    plan = plan_epoch(config, 1, K)
    logs = []
    for in_place in (True, False):
        monkeypatch.setattr(visits, "works_in_place", works_in_place if in_place else lambda *_: False)
        model = build_model(config.model, config.run, TYPES)
        theta, boundaries = Theta(model, config.optimizer), Boundaries.for_plan(plan, S, K, model)
        assert works_in_place(plan, window, boundaries)
        log = []
        for _ in range(UPDATES):
            out = visit(model, plan, theta, window, 0, boundaries, model.zero_state(S), Alone())
            log += [out.loss, out.penalty, out.residuals, out.dual, out.carry]
            log += [p.detach().clone() for p in model.parameters()]
            log += [tensor.clone() for tensor in boundaries.tensors().values()]
        logs.append((log, dict(boundaries.h_counts)))
    (ours, counts), (plain, plain_counts) = logs
    assert counts == plain_counts
    assert len(ours) == len(plain)
    for got, wanted in zip(ours, plain, strict=True):
        torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("method", {"h_steps": 0}),
        ("method", {"h_steps": 2}),
        ("method", {"theta_steps": 2}),
        ("method", {"bounded": True}),
        ("method", {"closing": True, "starts": "tied"}),
        ("method", {"dual": {"order": "before"}}),
        ("method", {"dual": {"order": "before", "keep": False}}),
        ("method", {"first": "forward"}),
        ("method", {"name": "alm"}),
        ("method", {"name": "costate", "sweeps": 1}),
        ("objective", {"loss_on": "target"}),
        ("objective", {"penalty": "l2+kl"}),
        ("batching", {"order": "shuffled", "mode": "minibatch"}),
    ],
    ids=str,
)
def test_what_it_does_not_do_is_left_to_visit(part: str, changes: dict[str, Any]) -> None:
    parts = {
        "method": {"name": "admm", "first": "persistent"},
        "objective": {"weight": 0.6},
        "batching": {"mode": "batch"},
    }
    assert plan_epoch(experiment(**parts), 1, K).in_place
    parts[part] |= changes
    assert not plan_epoch(experiment(**parts), 1, K).in_place


@pytest.mark.parametrize(
    ("most", "method"),
    [
        (5, {"name": "costate", "sweeps": 3}),
        (12, {"name": "alm", "theta_steps": 2}),
        (11, {"name": "admm", "h_steps": 2}),
        (4, {"name": "bptt"}),
    ],
)
def test_what_a_visit_with_tensors_of_its_own_holds(most: int, method: dict[str, Any]) -> None:
    """At most, in tensors over all boundaries, beside what is kept from visit to visit."""
    K, hidden = 2000, 16
    config = experiment(
        model={"cell": "gru", "hidden": hidden},
        objective={"block": B, "weight": 0.0 if method["name"] == "bptt" else 0.6},
        method={"first": "persistent", "relaxation": 1, **method},
        batching={"mode": "batch", "streams": 1, "chunk_tokens": B * 20},
    )
    window, plan = windows_of(make_stream(1, K * B, TYPES), B, K)[0], plan_epoch(config, 1, K)
    model = build_model(config.model, config.run, TYPES)
    theta, boundaries = Theta(model, config.optimizer), Boundaries.for_plan(plan, 1, K, model)

    def once() -> None:
        visit(model, plan, theta, window, 0, boundaries, model.zero_state(1), Alone())

    once()  # what stays from the first one on is there
    profile: Any = torch.autograd.profiler.profile(profile_memory=True)
    with profile:
        once()
    events = profile.kineto_results.events()
    memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = list(itertools.accumulate(size for _, size in memory))
    tensor = (K + 1) * hidden * 8
    assert most - 2 < max(held) / tensor < most

"""pm, admm, alm and costate with a penalty against the plain oracle, update by update."""

import itertools
from typing import Any

import pytest
import torch
from oracle import Oracle
from problems import experiment, make_stream, windows_of

from tpdist.data.streams import PAD_INPUT
from tpdist.models import IGNORED, build_model
from tpdist.tprop import Alone, Boundaries, Theta, make_window, plan_epoch, visit

TYPES, B, S, BLOCKS, UPDATES = 6, 2, 2, 3, 5
MODELS = {
    "gru": {"cell": "gru", "hidden": 4},
    "lstm": {"cell": "lstm", "hidden": 3},
    "elman-2": {"cell": "elman", "hidden": 3, "layers": 2, "embedding": 2},
    "gru-2-tied": {"cell": "gru", "hidden": 3, "layers": 2, "tied": True},
}
METHODS: dict[str, dict[str, Any]] = {
    "pm": {"name": "pm", "h_steps": 2},
    "admm": {"name": "admm", "h_steps": 2},
    "alm": {"name": "alm"},
    "costate": {"name": "costate", "sweeps": 2},
}


def compare(
    model_part: dict[str, Any],
    method: dict[str, Any],
    objective: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    blocks: int = BLOCKS,
    chunk_tokens: int = 5,
    missing: int = 0,
) -> None:
    """Two windows that take turns; h, u, θ and the loss after each of five updates."""
    config = experiment(
        model={"init": 0.5, **model_part},
        objective={"block": B, "weight": 0.6, **(objective or {})},
        method={"first": "persistent", **method},
        batching={"streams": S, "blocks": blocks, "chunk_tokens": chunk_tokens},
        optimizer={"name": "adagrad", "lr": 0.1, "clip": 0.2, **(optimizer or {})},
    )
    count = 2 * BLOCKS
    ends = {"edge_free": config.method.edge_free, "closing": config.method.closing}
    windows = windows_of(make_stream(S, count * B, TYPES), B, blocks, missing, **ends)
    model, slow = (build_model(config.model, config.run, TYPES) for _ in range(2))
    plan = plan_epoch(config, 1, blocks)
    boundaries = Boundaries.for_plan(plan, S, count, model)
    theta = Theta(model, config.optimizer)
    oracle = Oracle(config, slow, S, count)
    carried = model.zero_state(S)
    before = [p.detach().clone() for p in model.parameters()]
    for update in range(UPDATES):
        index = update % len(windows)
        window = windows[index]
        outcome = visit(model, plan, theta, window, index * blocks, boundaries, carried, Alone())
        carried = outcome.carry
        loss = oracle.visit(window.inputs, window.labels, index * blocks, window.opens)
        pairs = [(outcome.loss, loss), (carried, oracle.carried)]
        pairs += [(outcome.primal, oracle.primal), (outcome.dual, oracle.dual)]
        pairs += list(zip(model.parameters(), slow.parameters(), strict=True))
        if boundaries.h is not None:
            pairs.append((boundaries.h, oracle.h))
        if boundaries.u is not None:
            pairs.append((boundaries.u, oracle.u))
        for got, wanted in pairs:
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    for p, old in zip(model.parameters(), before, strict=True):
        assert float((p.detach() - old).abs().max()) > 1e-4
    if config.method.name in ("admm", "alm") and boundaries.u is not None:
        assert float(boundaries.u.abs().max()) > 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("model", "starts", "loss_on"),
    [
        *itertools.product(["lstm"], ["tied", "held"], ["prediction", "target"]),
        *itertools.product(["gru", "elman-2", "gru-2-tied"], ["tied"], ["prediction"]),
        *itertools.product(["gru", "elman-2", "gru-2-tied"], ["held"], ["target"]),
    ],
)
def test_against_the_oracle(model: str, method: str, starts: str, loss_on: str) -> None:
    compare(MODELS[model], {**METHODS[method], "starts": starts}, {"loss_on": loss_on})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("starts", ["tied", "held"])
def test_two_theta_steps_and_all_clips(method: str, starts: str) -> None:
    compare(
        MODELS["lstm"],
        {
            **METHODS[method],
            "theta_steps": 2,
            "starts": starts,
            "h_optimizer": {"lr": 0.5, "clip": 0.1, "options": {}},
            "dual": {"lr": 0.4, "clip": 0.05},
        },
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"dual": {"order": "before"}},
        {"dual": {"order": "before", "keep": False}},
        {"first": "forward"},
        {"first": "persistent", "relaxation": 0, "starts": "tied"},
        {"first": "persistent", "relaxation": 2, "edge": "zero"},
        {"closing": True, "starts": "tied"},
        {"edge_free": True, "starts": "tied"},
        {"h_optimizer": {"name": "adagrad", "lr": 0.1, "options": {"eps": 1e-5}}, "first": "forward"},
        {"h_optimizer": {"name": "adam", "lr": 0.1}, "first": "forward"},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()).replace(" ", ""),
)
@pytest.mark.parametrize("method", ["admm", "alm"])
def test_options(method: str, changes: dict[str, Any]) -> None:
    compare(MODELS["gru"], {**METHODS[method], "theta_steps": 2, **changes})


@pytest.mark.parametrize(("sweeps", "blocks"), [(1, BLOCKS), (2, 2 * BLOCKS)])
@pytest.mark.parametrize("chunk_tokens", [5, 100])
def test_sweeps_that_begin_with_the_costates_of_the_last_visit(sweeps: int, blocks: int, chunk_tokens: int) -> None:
    method = {"name": "costate", "sweeps": sweeps, "keep_costates": True}
    compare(MODELS["lstm"], method, blocks=blocks, chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("penalty", ["kl", "l2+kl"])
@pytest.mark.parametrize("starts", ["tied", "held"])
def test_kl(penalty: str, starts: str) -> None:
    method = METHODS["pm" if penalty == "kl" else "admm"]
    compare(MODELS["lstm"], {**method, "starts": starts}, {"penalty": penalty, "kl_weight": 0.8})


@pytest.mark.parametrize("missing", [1, B, B + 1], ids=lambda missing: f"missing={missing}")
@pytest.mark.parametrize("loss_on", ["prediction", "target"])
@pytest.mark.parametrize("starts", ["tied", "held"])
@pytest.mark.parametrize("method", METHODS)
def test_a_stream_that_ends_before_the_others(method: str, starts: str, loss_on: str, missing: int) -> None:
    options = {"dual": {"lr": 0.4}} if method in ("admm", "alm") else {}
    compare(MODELS["gru"], {**METHODS[method], "starts": starts, **options}, {"loss_on": loss_on}, missing=missing)


def test_kl_without_what_the_head_does_not_see() -> None:
    """λ is 0, and the weight of kl is not."""
    compare(MODELS["lstm"], METHODS["costate"], {"penalty": "kl", "weight": 0.0, "kl_weight": 0.8})


@pytest.mark.parametrize(
    ("method", "ends"),
    [("admm", {"closing": True}), ("pm", {"edge_free": True}), ("admm", {"closing": True, "edge_free": True})],
    ids=str,
)
def test_windows_of_one_block(method: str, ends: dict[str, Any]) -> None:
    compare(MODELS["gru"], {**METHODS[method], "starts": "tied", **ends}, blocks=1)


@pytest.mark.parametrize("closing", [False, True], ids=["", "closing"])
def test_duals_of_a_stream_that_ends_before_the_others(closing: bool) -> None:
    compare(MODELS["lstm"], {**METHODS["admm"], "starts": "tied", "closing": closing}, missing=B + 1)


def test_a_closing_target_reads_no_padding() -> None:
    """Five tokens in two blocks of four, none of the type that pads: the last prediction has rolled on through it."""
    config = experiment(objective={"block": 4}, method={"name": "pm", "starts": "tied", "closing": True})
    inputs = torch.tensor([[1, 2, 3, 4], [5, PAD_INPUT, PAD_INPUT, PAD_INPUT]]).t()[:, None]
    labels = torch.tensor([[2, 3, 4, 5], [1, IGNORED, IGNORED, IGNORED]]).t()[:, None]
    model, plan = build_model(config.model, config.run, TYPES), plan_epoch(config, 1, 2)
    window = make_window(inputs, labels, torch.float64, tokens=5, opens=True, closing=True)
    boundaries, theta = Boundaries.for_plan(plan, 1, 3, model), Theta(model, config.optimizer)
    visit(model, plan, theta, window, 0, boundaries, model.zero_state(1), Alone())
    assert model.embedding.weight.grad is not None
    assert not model.embedding.weight.grad[PAD_INPUT].any()


@pytest.mark.parametrize("method", ["admm", "costate"])
def test_batch_mode_is_one_window_of_all_blocks(method: str) -> None:
    compare(MODELS["gru"], METHODS[method], blocks=2 * BLOCKS, chunk_tokens=100)

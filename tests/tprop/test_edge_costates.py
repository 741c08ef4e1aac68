"""Costates that a window in random order finds at its end, where the last visit of the window behind left them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import Oracle, unroll
from problems import StillTheta, experiment, make_stream, relative_error, windows_of
from torch import Tensor

from tpdist.config import Experiment
from tpdist.models import IGNORED, build_model
from tpdist.tprop import Alone, Boundaries, Theta, Window, plan_epoch, visit

TYPES, B, S, ALL = 6, 2, 2, 6
ORDER = [2, 0, 5, 1, 4, 3, 3, 5, 0, 2, 1, 4]  # of blocks; larger windows take what they can of it
CELLS = {
    "gru": {"cell": "gru", "hidden": 4},
    "lstm": {"cell": "lstm", "hidden": 3},
    "gru-2": {"cell": "gru", "hidden": 3, "layers": 2},
}


def config_of(blocks: int, model: str = "gru", method: dict[str, Any] | None = None, **parts: Any) -> Experiment:
    return experiment(
        model={"init": 0.7, **CELLS[model]},
        objective={"block": B, "weight": 0.0, **parts.get("objective", {})},
        method={
            "name": "costate", "first": "persistent", "relaxation": 1, "edge_costate": "kept", **(method or {}),
        },
        batching={"streams": S, "blocks": blocks, "order": "shuffled", **parts.get("batching", {})},
        optimizer={"name": "sgd", "lr": 0.3, "clip": None},
    )  # fmt: skip


class Plain(Oracle):
    """With windows in random order; one relaxation sweep from the block before."""

    def take(self, window: Window, begin: int, before: Tensor) -> Tensor:
        """before: inputs [B, S] of the block before the window. The loss."""
        self.before = before
        loss = self.visit(window.inputs, window.labels, begin, window.opens)
        self.h[:, begin + window.blocks] = self.carried
        return loss

    def _first_values(self, inputs: Tensor, begin: int, edge: Tensor) -> Tensor:
        K = inputs.shape[2]
        h = torch.zeros(S, K + 1, self.model.state_size).double()
        for s in range(S):
            for i in range(K):
                ids = inputs[:, s, i - 1] if i else self.before[:, s]
                if begin + i:
                    h[s, i] = unroll(self.model, ids, self.h[s, begin + i - 1])[1].detach()
        return h


@pytest.mark.parametrize("chunk_tokens", [B, 1000])  # a block of a stream at once; one roll-out for all passes
@pytest.mark.parametrize("missing", [0, B + 1])
@pytest.mark.parametrize(
    ("blocks", "model", "method", "objective"),
    [
        (1, "gru", {}, {}),
        (1, "lstm", {"theta_steps": 2}, {}),
        (2, "gru-2", {}, {}),
        (3, "gru", {}, {}),
        (3, "lstm", {"sweeps": 1}, {"weight": 0.5}),
        (3, "gru-2", {"sweeps": 0}, {}),
        (3, "gru", {"sweeps": 1}, {"weight": 0.5, "penalty": "l2+kl"}),
        (4, "gru", {}, {"loss_on": "target", "weight": 0.5}),
    ],
)
def test_against_plain_visits(
    blocks: int, model: str, method: dict[str, Any], objective: dict[str, Any], missing: int, chunk_tokens: int
) -> None:
    config = config_of(blocks, model, method, objective=objective, batching={"chunk_tokens": chunk_tokens})
    stream = make_stream(S, ALL * B, TYPES)
    windows = windows_of(stream, B, blocks, missing)
    fast, slow = (build_model(config.model, config.run, TYPES) for _ in range(2))
    plan, theta = plan_epoch(config, 1, blocks), Theta(fast, config.optimizer)
    boundaries, plain = Boundaries.for_plan(plan, S, ALL, fast), Plain(config, slow, S, ALL)
    for index in [i for i in ORDER if i < len(windows)]:
        begin = index * blocks
        before = stream[:, max(0, begin - 1) * B : max(0, begin - 1) * B + B].t()
        earlier = before[:, :, None] if begin else before[:, :, None][:, :, :0]
        window = replace(windows[index], earlier=earlier)
        outcome = visit(fast, plan, theta, window, begin, boundaries, fast.zero_state(S), Alone())
        loss = plain.take(window, begin, before)
        pairs = [(outcome.loss, loss), *zip(fast.parameters(), slow.parameters(), strict=True)]
        assert boundaries.h is not None
        assert boundaries.costate is not None
        pairs += [(boundaries.h, plain.h), (boundaries.costate, plain.costate)]
        for got, wanted in pairs:
            torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
    assert float(plain.costate.abs().max()) > 1e-3


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("model", CELLS)
def test_from_right_to_left_windows_add_up_to_bptt_through_the_stream(model: str, blocks: int) -> None:
    """θ stays: once the states are exact, each window finds at its end the gradient of all that comes behind it."""
    config = config_of(blocks, model, {"relaxation": 0, "first": "forward"})
    stream = make_stream(S, ALL * B, TYPES)
    windows = windows_of(stream, B, blocks)
    net = build_model(config.model, config.run, TYPES)
    plan, theta = plan_epoch(config, 1, blocks), StillTheta(net, config.optimizer)
    boundaries = Boundaries.for_plan(plan, S, ALL, net)
    total = [torch.zeros_like(p) for p in net.parameters()]
    indices = list(range(len(windows)))
    for update, index in enumerate([*indices, *reversed(indices)]):
        net.zero_grad()
        visit(net, plan, theta, windows[index], index * blocks, boundaries, net.zero_state(S), Alone())
        if update >= len(indices):
            for added, p in zip(total, net.parameters(), strict=True):
                assert p.grad is not None
                added += p.grad * windows[index].tokens
    net.zero_grad()
    outputs, _ = net.unroll(stream[:, :-1].t(), net.zero_state(S))
    net.loss(outputs, stream[:, 1:].t()).backward()
    assert relative_error(total, [p.grad for p in net.parameters() if p.grad is not None]) < 1e-12


def test_a_window_behind_which_no_text_is_ends_with_0() -> None:
    config = config_of(1)
    windows = windows_of(make_stream(S, ALL * B, TYPES), B, 1, missing=B + 1)
    assert (windows[-1].labels[:, -1] == IGNORED).all()
    net = build_model(config.model, config.run, TYPES)
    plan, theta = plan_epoch(config, 1, 1), Theta(net, config.optimizer)
    boundaries = Boundaries.for_plan(plan, S, ALL, net)
    for index in (ALL - 1, ALL - 2):
        visit(net, plan, theta, windows[index], index, boundaries, net.zero_state(S), Alone())
    assert boundaries.costate is not None
    assert not boundaries.costate[-1, ALL - 1 :].any()
    assert boundaries.costate[0, ALL - 1].any()
    assert boundaries.costate[-1, ALL - 2].any()


@pytest.mark.parametrize("name", ["bptt", "pm", "admm", "alm"])
def test_methods_without_costates_keep_none(name: str) -> None:
    """Whatever a file says that was written for costate."""
    method = {"name": name, "first": "persistent", "keep_costates": True, "edge_costate": "kept", "sweeps": 2}
    plan = plan_epoch(experiment(method=method, batching={"order": "shuffled"}), 1, 4)
    assert (plan.sweeps, plan.edge_costate, plan.stores_costates) == (0, False, False)

"""P workers in time compute what one does, and send no more than Section 4 of the design allows."""

from typing import Any

import pytest
import torch
from chain import Link
from fleet import fleet
from problems import experiment, make_stream
from torch import Tensor

from tpdist.models import IGNORED

TYPES, B, S, K, VISITS = 6, 2, 2, 5, 3
SPANS = {1: [5], 2: [3, 2], 3: [1, 3, 1], 5: [1, 1, 1, 1, 1]}
METHODS: dict[str, dict[str, Any]] = {
    "bptt": {"name": "bptt", "first": "forward"},
    "pm-zero": {"name": "pm", "h_steps": 2, "first": "zero", "starts": "tied"},
    "pm-one-block": {"name": "pm", "h_steps": 2, "first": "one-block", "theta_steps": 2},
    "admm": {"name": "admm", "h_steps": 2, "first": "persistent", "relaxation": 2, "starts": "tied"},
    "admm-released": {
        "name": "admm", "h_steps": 2, "theta_steps": 2, "first": "one-block", "starts": "tied", "closing": True,
        "edge_free": True, "edge": "zero", "dual": {"order": "before", "keep": False, "lr": 0.1},
        "h_optimizer": {"name": "adagrad", "lr": 0.1, "options": {}},
    },
    "admm-kept-adam": {"name": "admm", "first": "persistent", "h_optimizer": {"name": "adam", "lr": 0.05}},
    "admm-recomputed": {"name": "admm", "first": "persistent", "h_optimizer": {"name": "adagrad", "lr": 0.1}},
    "admm-late-duals": {"name": "admm", "first": "forward", "dual": {"start_epoch": 2}},
    "admm-tied-in-place": {"name": "admm", "first": "persistent", "starts": "tied"},
    "pm-tied-in-place": {"name": "pm", "first": "persistent", "starts": "tied"},
    "pm-held-in-place": {"name": "pm", "first": "persistent"},
    "pm-without-h-steps": {"name": "pm", "h_steps": 0, "first": "forward"},
    "alm": {"name": "alm", "theta_steps": 2, "first": "forward", "starts": "tied"},
    "alm-late-duals": {"name": "alm", "theta_steps": 2, "first": "forward", "dual": {"start_epoch": 2}},
    "costate": {"name": "costate", "first": "persistent", "sweeps": 2},
    "costate-kept": {"name": "costate", "first": "persistent", "sweeps": 1, "keep_costates": True},
}  # fmt: skip
BATCHING: dict[str, dict[str, Any]] = {"admm-recomputed": {"mode": "batch", "recompute": True}}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "": {},
    "target": {"loss_on": "target"},
    "l2+kl": {"penalty": "l2+kl"},
    "no-weight": {"weight": 0.0},
}
COMBINATIONS = [(m, "") for m in METHODS]
COMBINATIONS += [(m, "target") for m in ("pm-one-block", "admm", "alm", "costate", "costate-kept")]
COMBINATIONS += [("admm", "l2+kl"), ("costate", "no-weight")]


def work_of(
    method: str, objective: str, workers: int, short: bool, chunk_tokens: int = 4
) -> tuple[list[list[Tensor]], list[Link]]:
    """θ, h, u, costates, carried state, loss, penalty, residuals (by place) after each visit, put together again."""
    config = experiment(
        model={"cell": "lstm", "hidden": 3, "init": 0.5},
        objective={"block": B, "weight": 0.6, **OBJECTIVES[objective]},
        method=METHODS[method],
        batching={"streams": S, "blocks": K, "chunk_tokens": chunk_tokens, **BATCHING.get(method, {})},
        optimizer={"name": "adagrad", "lr": 0.1, "clip": 0.2},
    )
    stream = make_stream(S, K * B, TYPES)
    inputs, labels = (x.reshape(S, K, B).permute(2, 0, 1).contiguous() for x in (stream[:, :-1], stream[:, 1:]))
    if short:  # stream 1 lacks the last block, stream 0 its last token
        labels[:, 1, -1] = IGNORED
        labels[-1, 0, -1] = IGNORED
    return fleet(config, inputs, labels, SPANS[workers], VISITS)


@pytest.mark.parametrize("chunk_tokens", [4, 2])  # a block of every stream at once; a stream after the other
@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize(("method", "objective"), COMBINATIONS)
def test_workers_agree_with_one(method: str, objective: str, workers: int, chunk_tokens: int) -> None:
    short = workers == 3  # the last worker's only block is empty in stream 1
    one, _ = work_of(method, objective, 1, short, chunk_tokens)
    many, _ = work_of(method, objective, workers, short, chunk_tokens)
    for a, b in zip(one, many, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("method", "right", "left"),
    [
        ("bptt", 0, 1),  # h alone, for the residual
        ("pm-zero", 2, 3),  # n = 2 H-steps: 2dn + d
        ("admm", 3 + 2, 6),  # 3d(n+1), and two relaxation sweeps
        ("pm-one-block", 2 + 1, 3),  # one ĥ more; two θ-steps send none
        ("pm-tied-in-place", 1 + 1, 2),  # one relaxation sweep
        ("admm-late-duals", 1, 4),  # no ĥ for a dual step that is not taken
        ("admm-recomputed", 2 + 1, 4),
        ("alm", 2 + 1, 4),  # m = 2 θ-steps, which move H
        ("costate", 1, 2 + 1),  # one relaxation sweep; two costate sweeps, and h
        ("costate-kept", 1, 1 + 2),  # the first values of the costates too
    ],
)
def test_numbers_that_cross_an_edge(method: str, right: int, left: int) -> None:
    """In units of d per stream, edge and update; `forward` and the carried state are counted apart."""
    _, (first, second) = work_of(method, "", 2, False)
    unit = VISITS * S * 2 * 3
    assert (first.sent_right, second.sent_left) == (unit * right, unit * left)
    assert (first.sent_left, second.sent_right) == (0, 0)

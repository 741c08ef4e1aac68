"""P workers in time compute what one does, for settings drawn at random: sizes, chunks, cells, methods, padding."""

import random
from typing import Any

import pytest
import torch
from fleet import fleet
from problems import blocks_of, experiment, make_stream
from pydantic import ValidationError

from tpdist.config import Experiment
from tpdist.tprop import plan_epoch

TYPES = 7
SEEDS = 80
IN_PLACE = 24


def drawn(rng: random.Random, in_place: bool) -> tuple[Experiment, int]:
    """A configuration that can be, and its workers in time. in_place: one whose visits are, where a worker can."""
    while True:
        name = rng.choice(["pm", "admm"] if in_place else ["bptt", "pm", "admm", "alm", "costate"])
        block, streams, workers = rng.randint(1, 3), rng.randint(1, 3), rng.randint(2, 3)
        method: dict[str, Any] = {
            "name": name,
            "first": rng.choice(["zero", "one-block", "forward", "persistent"]),
            "relaxation": rng.randint(0, 2),
            "starts": rng.choice(["tied", "held"]),
            "h_steps": rng.randint(0, 2),
            "theta_steps": rng.randint(1, 2),
            "bounded": rng.random() < 0.2,
            "closing": rng.random() < 0.3,
            "edge_free": rng.random() < 0.2,
            "edge": rng.choice(["zero", "carry"]),
            "h_optimizer": rng.choice(
                [{"lr": 0.2}, {"name": "adagrad", "lr": 0.1}, {"name": "adam", "lr": 0.05}, {"lr": 0.2, "clip": 0.3}]
            ),
            "dual": {"order": rng.choice(["before", "after"]), "keep": rng.random() < 0.7, "lr": 0.3},
        }
        if name == "costate":
            method |= {"sweeps": rng.randint(0, 3), "keep_costates": rng.random() < 0.5}
        if in_place:
            method |= {"first": "persistent", "h_steps": 1, "theta_steps": 1, "bounded": False, "closing": False}
            method["dual"] |= {"order": "after", "keep": True}
        l2 = {"penalty": "l2", "loss_on": "prediction"} if in_place else {}
        again = in_place and (name, method["starts"]) == ("admm", "held") and rng.random() < 0.5
        parts = {
            "model": {"cell": rng.choice(["gru", "lstm", "elman"]), "layers": rng.randint(1, 2), "hidden": 3},
            "objective": {
                "block": block,
                "weight": 0.6,
                "penalty": rng.choice(["l2", "l2", "kl", "l2+kl"]),
                "loss_on": rng.choice(["prediction", "target"]),
                **l2,
            },
            "method": method,
            "batching": {
                "streams": streams,
                "blocks": rng.randint(2 * workers, 10) if in_place else rng.randint(workers, 6),
                "chunk_tokens": block * rng.choice([1, 2, 3, 4, 100][: 4 if in_place else 5]),
                "mode": "batch" if in_place else "minibatch",
                "recompute": again,
            },
            "optimizer": {"name": "adagrad", "lr": 0.1, "clip": 0.2},
        }
        try:
            return experiment(**parts), workers
        except ValidationError:
            continue


@pytest.mark.parametrize(
    ("seed", "in_place"), [(s, False) for s in range(SEEDS)] + [(s, True) for s in range(IN_PLACE)]
)
def test_workers_agree_with_one(seed: int, in_place: bool) -> None:
    rng = random.Random(seed)
    config, workers = drawn(rng, in_place)
    assert plan_epoch(config, 1, config.batching.blocks).in_place or not in_place
    B, S, K = config.objective.block, config.batching.streams, config.batching.blocks
    short = rng.randint(0, B * K - 1) if S > 1 else 0  # tokens that the last stream lacks at its end
    inputs, labels = blocks_of(make_stream(S, K * B, TYPES, seed), B, short)
    inputs[0, 0, 0] = TYPES - 1
    cuts = sorted(rng.sample(range(1, K), workers - 1))
    spans = [end - begin for begin, end in zip([0, *cuts], [*cuts, K], strict=True)]
    one, _ = fleet(config, inputs, labels, [K], 3)
    many, _ = fleet(config, inputs, labels, spans, 3)
    for a, b in zip(one, many, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)

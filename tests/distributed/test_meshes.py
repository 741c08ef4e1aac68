"""One worker and many compute the same numbers: θ, H, U and the loss after some updates, in float64."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import files
from mesh_runs import Case, Parts, together, train_all
from torch import Tensor

TOLERANCE = 1e-10
BLOCKS, STREAMS = 31, 2
METHODS: dict[str, dict[str, Any]] = {
    "bptt": {"name": "bptt"},
    "pm": {"name": "pm", "h_steps": 2, "starts": "tied", "h_optimizer": {"lr": 0.1}},
    "admm": {"name": "admm", "h_steps": 2, "starts": "tied", "h_optimizer": {"name": "adagrad", "lr": 0.1}},
    "alm": {"name": "alm", "theta_steps": 2, "starts": "tied", "h_optimizer": {"lr": 0.1}},
    "costate": {"name": "costate", "sweeps": 3},
}
MODELS: dict[str, dict[str, Any]] = {"gru": {}, "lstm": {"cell": "lstm"}, "gru-2": {"layers": 2}}
MESHES = [(2, 1), (1, 2), (2, 2), (1, 3), (1, 4)]
IDLE = (1, 4)  # the last window has three blocks, and the last worker none of them
ALS = {"cell": "elman", "activation": "identity"}


def settings(mesh: tuple[int, int]) -> dict[str, Parts]:
    """What is tried on a mesh: every method in minibatches and in batch mode, with another model each time."""
    found: dict[str, Parts] = {}
    models = list(MODELS.items())
    shift = MESHES.index(mesh)
    for i, (name, method) in enumerate(METHODS.items()):
        for j, mode in enumerate(("minibatch", "batch")):
            model, model_parts = models[(i + j + shift) % 3]
            first = {"first": "persistent", "relaxation": 2} if mode == "batch" or mesh == (1, 3) else {}
            # windows in parts, whose edges come first; and, at every second, in one part, rolled out once
            chunk = {"chunk_tokens": 15 if (i + j + shift) % 2 else 1000}
            parts: Parts = {"model": model_parts, "method": {**method, **first}, "batching": {"mode": mode, **chunk}}
            found[f"{name} {model} {mode}"] = parts
    found["released"] = {
        "method": {
            "name": "admm", "h_steps": 2, "theta_steps": 2, "first": "one-block", "starts": "tied", "closing": True,
            "edge_free": True, "edge": "zero", "dual": {"order": "after", "lr": 0.1},
            "h_optimizer": {"name": "adagrad", "lr": 0.1},
        }
    }  # fmt: skip
    found["kl"] = {"objective": {"penalty": "kl"}, "method": METHODS["pm"]}
    found["own penalty"] = {
        "objective": {"penalty": "my_penalties:huber", "allow_penalties_from": ["my_penalties"]},
        "method": METHODS["pm"],
    }
    found["own visit"] = {
        "method": {
            "name": "bptt", "first": "persistent", "relaxation": 0,
            "visit": "my_methods:damped", "allow_visits_from": ["my_methods"],
        }
    }  # fmt: skip
    found["kept costates, loss on targets"] = {
        "objective": {"loss_on": "target"},
        "method": {"name": "costate", "sweeps": 1, "keep_costates": True},
    }
    # 10 tokens of 12 types: of the embedding's gradient only the rows of these tokens are sent
    found["few tokens"] = {"objective": {"block": 1}, "batching": {"blocks": 5}, "method": METHODS["admm"]}
    if mesh[1] == 1:  # windows in random order are each worker's own, so along time they differ from one worker's
        found["shuffled"] = {
            "method": {"name": "costate", "sweeps": 1, "first": "persistent"},
            "batching": {"order": "shuffled", "blocks": 2},
        }
        found["costates at the edge"] = {
            "method": {"name": "costate", "first": "persistent", "edge_costate": "kept"},
            "batching": {"order": "shuffled", "blocks": 2},
        }
    for name, recompute in (("held in place", False), ("held in place, recomputed", True)):
        found[name] = {
            "method": {
                "name": "admm",
                "first": "persistent",
                "relaxation": 1,
                "h_optimizer": {"name": "adagrad", "lr": 0.1},
            },
            "batching": {"mode": "batch", "chunk_tokens": 15, "recompute": recompute},
        }
    if mesh == IDLE:
        minibatches = {name: parts for name, parts in found.items() if "minibatch" in name or name == "released"}
        twice = {"theta_steps": 2}
        return {name: {**parts, "method": {**parts["method"], **twice}} for name, parts in minibatches.items()}
    found["als"] = {
        "model": ALS,
        "objective": {"block": 1, "loss_on": "target", "weight": 1.0},
        "method": {"name": "als"},
        "batching": {"blocks": 40},
    }
    return found


ALL = [(mesh, name) for mesh in MESHES for name in settings(mesh)]


@pytest.fixture(scope="module")
def outcomes(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, str], dict[str, Tensor]]:
    """Everything of `ALL`, and the same on one worker."""
    where = tmp_path_factory.mktemp("runs")
    own = tmp_path_factory.mktemp("own")
    for name, code in files("README.md").items():
        (own / name).write_text(code, encoding="utf-8")
    sys.path.append(str(own))  # which new processes take over
    cases: dict[tuple[Any, str], Case] = {}
    for mesh, name in ALL:
        for shape in (mesh, (1, 1)):
            key = (mesh, name, shape == mesh)
            run = where / f"{len(cases)}"
            cases[key] = Case(str(corpus), str(run), settings(mesh)[name], shape)  # type: ignore[index]
    results = train_all(list(cases.values()))
    blocks = {key: 155 if key[1] in ("als", "few tokens") else BLOCKS for key in cases}
    return {key: together(ranks, blocks[key], STREAMS) for key, ranks in zip(cases, results, strict=True)}


@pytest.mark.parametrize(("mesh", "name"), ALL, ids=str)
def test_many_workers_compute_what_one_does(outcomes: dict, mesh: tuple[int, int], name: str) -> None:
    one, many = outcomes[mesh, name, False], outcomes[mesh, name, True]
    assert one.keys() == many.keys()
    for what, wanted in one.items():
        torch.testing.assert_close(
            many[what], wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True, msg=lambda m, n=what: f"{n}: {m}"
        )

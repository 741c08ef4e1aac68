"""One visit of a small window on a device: what the GPU's checks compare with the CPU. Needs no config file, no ray."""

from typing import Any

import torch
from torch import Tensor

from tpdist.config import Experiment
from tpdist.models import build_model
from tpdist.tprop import Alone, Boundaries, Captured, CudaGraphs, Theta, make_window, plan_epoch, visit
from tpdist.tprop.captured import WARM

TYPES, STREAMS, BLOCKS, BLOCK = 50, 3, 4, 5
CELLS: dict[str, dict[str, Any]] = {
    "elman": {"cell": "elman"},
    "gru": {"cell": "gru"},
    "gru, 2 layers": {"cell": "gru", "layers": 2},
    "lstm": {"cell": "lstm"},
    "mrnn": {"cell": "mrnn"},
}
METHODS: dict[str, dict[str, Any]] = {
    "bptt": {"name": "bptt"},
    "pm": {"name": "pm", "h_steps": 2, "starts": "tied", "h_optimizer": {"lr": 0.1}},
    "admm": {"name": "admm", "h_steps": 1},
    "alm": {"name": "alm", "starts": "tied", "h_optimizer": {"name": "adagrad", "lr": 0.1}},
    "costate": {"name": "costate"},
    **{name: {"name": "admm", "first": "persistent", "relaxation": 1} for name in ("in place", "in place, recomputed")},
}
BATCHING: dict[str, dict[str, Any]] = {  # parts of two blocks of three streams
    "in place": {"mode": "batch", "chunk_tokens": 6 * BLOCK},
    "in place, recomputed": {"mode": "batch", "chunk_tokens": 6 * BLOCK, "recompute": True},
}


CAPTURED = tuple(name for name in METHODS if name not in BATCHING)  # methods whose updates can be CUDA graphs
COUNT = WARM + 3
PLAIN: dict[str, Any] = {"name": "sgd", "lr": 0.5, "clip": None}  # gradients are in θ's change
ADAM: dict[str, Any] = {"name": "adam", "lr": 0.01, "clip": 0.5}


def updates(
    device: str, model: dict[str, Any], method: str, optimizer: dict[str, Any] = PLAIN, captured: bool = False
) -> dict[str, Tensor]:
    """θ, u and the loss after some updates in float64, on the CPU.

    method: a name in METHODS. captured: the last of them are replayed from a CUDA graph; raises RuntimeError where
    they cannot.
    """
    config = Experiment.model_validate(
        {
            "model": {"hidden": 16, **model},
            "objective": {"block": BLOCK, "weight": 0.5},
            "method": METHODS[method],
            "batching": {"streams": STREAMS, "blocks": BLOCKS, **BATCHING.get(method, {})},
            "optimizer": optimizer,
            "run": {"dtype": "float64"},
        }
    )
    language_model = build_model(config.model, config.run, TYPES).to(device)
    plan = plan_epoch(config, 1, BLOCKS)
    theta = Theta(language_model, config.optimizer, capturable=captured)
    one_visit = Captured(CudaGraphs(torch.device(device)), refuse) if captured else visit
    tokens = torch.randint(TYPES, (BLOCK, STREAMS, BLOCKS + 1), generator=torch.Generator().manual_seed(0)).to(device)
    boundaries = Boundaries.for_plan(plan, STREAMS, BLOCKS, language_model)
    carried = language_model.zero_state(STREAMS)
    losses = []
    for _ in range(COUNT):
        window = make_window(
            tokens[:, :, :-1].contiguous(), tokens[:, :, 1:].contiguous(), torch.float64,
            tokens=BLOCK * STREAMS * BLOCKS, opens=False,
        )  # fmt: skip
        outcome = one_visit(language_model, plan, theta, window, 0, boundaries, carried, Alone())
        carried = outcome.carry
        losses.append(outcome.loss.clone())
    found = {name: p.detach().cpu() for name, p in language_model.named_parameters()}
    found |= {name: t.cpu() for name, t in boundaries.tensors().items()}
    return found | {"loss": torch.stack(losses).cpu()}


def difference(device: str, model: dict[str, Any], method: str, captured: bool = False) -> float:
    """Between the device's numbers and the CPU's; of updates by Adam where they are replayed from a CUDA graph."""
    optimizer = ADAM if captured else PLAIN
    cpu = updates("cpu", model, method, optimizer)
    return largest_difference(cpu, updates(device, model, method, optimizer, captured))


def refuse(said: str) -> None:
    raise RuntimeError(said)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Over all tensors, relative to each one's largest entry."""
    return max(float((other[name] - t).abs().max() / t.abs().max().clamp(min=1e-12)) for name, t in one.items())

"""Updates and small runs on a device: what the GPU's checks compare with the CPU. Needs no config file, no ray."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tpdist
from tpdist.config import BUILT_IN_CELLS, Experiment
from tpdist.models import build_model
from tpdist.models.cells import CUDNN_STEPS
from tpdist.tprop import Alone, Boundaries, Captured, CudaGraphs, Theta, make_window, plan_epoch, visit
from tpdist.tprop.captured import WARM
from tpdist.training.checks import set_kernels, settings_kept
from tpdist.training.progress import Silent

TYPES, STREAMS, BLOCKS, BLOCK = 50, 3, 4, 5
CELLS: dict[str, dict[str, Any]] = {
    **{cell: {"cell": cell} for cell in BUILT_IN_CELLS},
    "gru, 2 layers": {"cell": "gru", "layers": 2},
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


# cuDNN has other kernels for float32 than for float64, small hidden sizes have their own, and has given wrong gradients
SIZES = (50, 100, 150, 200)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.5, "clip": 0.5},
    # with torch's eps of 1e-8 its first steps take a gradient's sign, and where that is 0 but for rounding, any sign
    "adam": {"name": "adam", "lr": 0.001, "clip": 0.5, "options": {"eps": 1e-3}},
    "adagrad": {"name": "adagrad", "lr": 0.01, "clip": None, "options": {"initial_accumulator_value": 0.1}},
}
# relative to a tensor's largest entry; a run's: of its perplexities
TOLERANCES = {"float64": 1e-8, "float32": 1e-4, "run": 1e-3}

CAPTURED = tuple(name for name in METHODS if name not in BATCHING)  # methods whose updates can be CUDA graphs
COUNT = WARM + 3
PLAIN: dict[str, Any] = {"name": "sgd", "lr": 0.5, "clip": None}  # gradients are in θ's change
ADAM: dict[str, Any] = {"name": "adam", "lr": 0.01, "clip": 0.5}
RECORDED: dict[str, dict[str, Any]] = {
    "sgd": PLAIN,
    "sgd, momentum": {"name": "sgd", "lr": 0.05, "clip": 0.5, "options": {"momentum": 0.9}},
    "adagrad": {"name": "adagrad", "lr": 0.05, "clip": 0.5, "options": {"initial_accumulator_value": 0.1}},
    "adamw": {"name": "adamw", "lr": 0.01, "clip": 0.5, "options": {"weight_decay": 0.1}},
}


@settings_kept()
def updates(
    device: str,
    model: dict[str, Any],
    method: str,
    optimizer: dict[str, Any] = PLAIN,
    captured: bool = False,
    dtype: str = "float64",
) -> dict[str, Tensor]:
    """θ, u and the loss after some updates, on the CPU.

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
            "run": {"dtype": dtype},
        }
    )
    set_kernels(config.run)  # as in training
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
            tokens[:, :, :-1].contiguous(), tokens[:, :, 1:].contiguous(), getattr(torch, dtype),
            tokens=BLOCK * STREAMS * BLOCKS, opens=False,
        )  # fmt: skip
        outcome = one_visit(language_model, plan, theta, window, 0, boundaries, carried, Alone())
        carried = outcome.carry
        losses.append(outcome.loss.clone())
    found = {name: p.detach().cpu() for name, p in language_model.named_parameters()}
    found |= {name: t.cpu() for name, t in boundaries.tensors().items()}
    return found | {"loss": torch.stack(losses).cpu()}


def difference(
    device: str,
    model: dict[str, Any],
    method: str,
    captured: bool = False,
    optimizer: dict[str, Any] | None = None,
    dtype: str = "float64",
) -> float:
    """Between the device's numbers and the CPU's; of updates by Adam where they are replayed from a CUDA graph."""
    optimizer = optimizer or (ADAM if captured else PLAIN)
    cpu = updates("cpu", model, method, optimizer, dtype=dtype)
    return largest_difference(cpu, updates(device, model, method, optimizer, captured, dtype))


def float32s() -> dict[str, Callable[[str], float]]:
    """By name, what a device's difference from the CPU is in float32, where cuDNN has kernels of their own."""
    cases = [
        (f"{cell} {hidden}, {name}", {"cell": cell, "hidden": hidden}, optimizer)
        for cell in ("gru", "lstm")
        for hidden in SIZES
        for name, optimizer in OPTIMIZERS.items()
    ]
    return {
        f"{name}, float32": partial(difference, model=model, method="costate", optimizer=optimizer, dtype="float32")
        for name, model, optimizer in cases
    }


def long_sequence(device: str, cell: str) -> float:
    """Of the last state and the gradient of θ over more steps than cuDNN takes at once."""
    config = Experiment.model_validate({"model": {"hidden": 4, "cell": cell}, "run": {"dtype": "float64"}})
    found = []
    for where in ("cpu", device):
        torch.manual_seed(0)
        model = build_model(config.model, config.run, TYPES).to(where)
        ids = torch.randint(TYPES, (CUDNN_STEPS + 9, 1), generator=torch.Generator().manual_seed(0)).to(where)
        h, last = model.unroll(ids, model.zero_state(1))
        h.square().mean().backward()
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        found.append(gradients | {"last": last.detach().cpu()})
    return largest_difference(*found)


def runs(device: str) -> dict[str, dict[str, Any]]:
    """By name, what is different about runs of the whole program."""
    found: dict[str, dict[str, Any]] = {  # on a GPU the updates by Adam, which is the default, are graphs
        "a run of admm": {},
        "a run of costate, shuffled": {
            "method": {"name": "costate", "first": "persistent", "relaxation": 1},
            "batching": {"order": "shuffled"},
        },
        "a run of costate, kept at the edge": {
            "method": {"name": "costate", "first": "persistent", "edge_costate": "kept"},
            "batching": {"order": "shuffled"},
        },
        "a run by Adagrad": {"optimizer": {"name": "adagrad", "lr": 0.05}},
    }
    if device == "cpu":
        return found
    asked = {"run": {"cuda_graph": True}}
    graphs = {"a run by Adagrad, as graphs": {**found["a run by Adagrad"], **asked}}
    return found | graphs | {"a run kernel by kernel": {"run": {"cuda_graph": False}}}


def as_trained(device: str, parts: dict[str, Any]) -> float:
    """Between validation perplexities of a run on the device, of one that goes on there, and of one on the CPU.

    NaN where one of them is.
    """
    reached = []
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        for name, where, resumed in (("cpu", "cpu", False), ("whole", device, False), ("resumed", device, True)):
            run = {**parts.get("run", {}), "epochs": 1 if resumed else 2, "device": where}
            config = {"batching": {"streams": 4}, **parts, "run": run, "model": {"hidden": 32}}
            source = {"types": 12, "states": 4, "branching": 2, "tokens": 20_000}
            config["data"] = {"recipe": "synthetic", "store": str(home / "store"), "synthetic": source}
            result = tpdist.train(Experiment.model_validate(config), home / name, Listener())
            if resumed:
                result = tpdist.resume(home / name, overrides=["run.epochs=2"], reporter=Listener())
            reached.append(result.valid_perplexity)
    return float(torch.tensor([abs(one / reached[0] - 1) for one in reached[1:]]).max())


class Listener(Silent):
    """Raises where a run says that no update could be recorded."""

    def say(self, text: str) -> None:
        if text.startswith("run.cuda_graph"):
            refuse(text)


def refuse(said: str) -> None:
    raise RuntimeError(said)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Over all tensors, relative to each one's largest entry; NaN where one of them has a NaN."""
    each = [(other[name] - t).abs().max() / t.abs().max().clamp(min=1e-12) for name, t in one.items()]
    return float(torch.stack([value.double() for value in each]).max())

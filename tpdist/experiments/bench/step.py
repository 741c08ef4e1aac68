"""`tpdist bench step`: one update by `bptt`, `admm`, `costate` against the plain loop's on as many tokens."""

from collections.abc import Callable
from typing import Any

import torch

from tpdist.config import Experiment
from tpdist.experiments.measure import Say, in_turns, medians, print_timings, report
from tpdist.experiments.plain import PlainLoop, Products, random_tokens
from tpdist.models import build_model
from tpdist.tprop import Alone, Boundaries, Captured, CudaGraphs, Theta, make_window, plan_epoch, visit
from tpdist.tprop.captured import WARM

ROUNDS = 9
EACH = {"cpu": 4, "cuda": 50}  # updates in one timing
STEPS, STREAMS, BLOCKS = 20, 4, 8  # B, S, K of admm and costate; bptt and the plain loop read S x K streams


def bench(
    say: Say, device: str = "cpu", types: int = 10_000, hidden: int = 200, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Interleaved updates; `floor` is the matrix products of a plain update and nothing else."""
    streams = STREAMS * BLOCKS
    parts: dict[str, Callable[[], object]] = {}
    for name, fused in (("plain", False), ("plain_fused", True)):
        parts[name] = _plain(PlainLoop(types, hidden, streams, device, fused=fused), types, device)
    graphs = device == "cuda"
    shapes = {"bptt": (streams, 1), "admm": (STREAMS, BLOCKS), "costate": (STREAMS, BLOCKS)}
    for name, shape in shapes.items():
        parts[name] = updater(device, types, hidden, {"name": name}, *shape, say=say if graphs else None)
        if graphs:
            parts[f"{name}_by_kernel"] = updater(device, types, hidden, {"name": name}, *shape)
    parts["floor"] = Products(types, hidden, STEPS, streams, device)
    timings = in_turns(parts, rounds, device, EACH[device], warm=WARM + 1)
    print_timings(timings, say)
    time = medians(timings)
    ratios = {
        "bptt_over_plain": time["plain"] / time["bptt"],  # tokens/s
        "bptt_over_plain_fused": time["plain_fused"] / time["bptt"],  # … where the loop asks for Adam's fused kernel
        "floor_over_plain": time["plain"] / time["floor"],  # … if only matrix products took time
        "admm_over_plain": time["admm"] / time["plain"],  # time
        "costate_over_plain": time["costate"] / time["plain"],
    }
    if graphs:  # what a CUDA graph brings
        ratios |= {f"{name}_by_kernel": time[f"{name}_by_kernel"] / time[name] for name in shapes}
    config = {"types": types, "hidden": hidden, "B": STEPS, "S": STREAMS, "K": BLOCKS, "updates a timing": EACH[device]}
    return report("step", device, config, timings, ratios, say)


def updater(
    device: str,
    types: int,
    hidden: int,
    method: dict[str, Any],
    streams: int,
    blocks: int,
    steps: int = STEPS,
    order: str = "sequential",
    say: Say | None = None,
) -> Callable[[], None]:
    """One visit of the same window of random tokens at every call, its state carried on or, if shuffled, stored.

    say: for updates as CUDA graphs; it is told if they cannot be recorded.
    """
    config = Experiment.model_validate(
        {
            "model": {"hidden": hidden},
            "objective": {"block": steps},
            "method": method,
            "batching": {"streams": streams, "blocks": blocks, "order": order},
        }
    )
    model = build_model(config.model, config.run, types).to(device)
    plan, theta = plan_epoch(config, 1, blocks), Theta(model, config.optimizer, capturable=say is not None)
    one_visit = visit if say is None else Captured(CudaGraphs(model.bias.device), say)
    reach = plan.reach
    boundaries = Boundaries.for_plan(plan, streams, reach + blocks, model)
    inputs, labels = random_tokens(types, 2, steps, streams, reach + blocks, device=device)
    earlier, inputs, labels = inputs[:, :, :reach], inputs[:, :, reach:], labels[:, :, reach:]
    window = make_window(inputs, labels, torch.float32, tokens=inputs.numel(), opens=False, earlier=earlier)
    state = [model.zero_state(streams)]

    def update() -> None:
        state[0] = one_visit(model, plan, theta, window, reach, boundaries, state[0], Alone()).carry

    return update


def _plain(loop: PlainLoop, types: int, device: str) -> Callable[[], object]:
    inputs, labels = random_tokens(types, 2, STEPS, STREAMS * BLOCKS, device=device)
    return lambda: loop.update(inputs, labels)

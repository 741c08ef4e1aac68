"""Checks and benchmarks on one GPU, in one call: python tests/gpu/run.py [--out DIR] [--limit SECONDS] [--device cuda]

Prints a short table and writes gpu.json: device, versions, configuration, every timing, ratios. Stops starting new
parts when the time limit is near. On a machine without a GPU, `--device cpu` tries the program at a small size.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from problems_gpu import CELLS, METHODS, largest_difference, updates  # noqa: E402

from tpdist.config import Experiment  # noqa: E402
from tpdist.models import build_model  # noqa: E402
from tpdist.tprop import Alone, Boundaries, Theta, make_window, plan_epoch, visit  # noqa: E402

TOLERANCE = 1e-8
PAIRS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--limit", type=float, default=480.0, help="seconds")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    deadline = time.monotonic() + options.limit
    found: dict[str, Any] = {"machine": machine(options.device), "checks": {}, "bench": {}, "ratios": {}}
    parts: list[tuple[str, Callable[[], None]]] = [
        ("checks", lambda: checks(options.device, found)),
        ("step", lambda: step(options.device, found)),
    ]
    failed = False
    for name, part in parts:
        if time.monotonic() > deadline:
            print(f"{name}: no time left")
            continue
        try:
            part()
        except Exception as error:
            failed = True
            found[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {found[name]}")
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    for name, value in found["ratios"].items():
        print(f"{name:<24} {value:.3f}")
    sys.exit(failed or any(value > TOLERANCE for value in found["checks"].values()))


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}


def checks(device: str, found: dict[str, Any]) -> None:
    """The device's float64 numbers against the CPU's."""
    for cell, model in CELLS.items():
        for method, settings in METHODS.items():
            error = largest_difference(updates("cpu", model, settings), updates(device, model, settings))
            found["checks"][f"{cell}, {method}"] = error
    worst = max(found["checks"], key=found["checks"].get)
    print(f"{len(found['checks'])} checks against the CPU; largest difference {found['checks'][worst]:.1e} ({worst})")


def step(device: str, found: dict[str, Any]) -> None:
    """Time of an update over that of a plain loop of nn.GRU, nn.Linear, cross_entropy on the same tokens."""
    types, hidden, count = (10_000, 200, 50) if device == "cuda" else (1_000, 50, 3)
    B, S, K = 20, 4, 8
    ours = {
        "bptt": _updater(device, types, hidden, {"name": "bptt"}, S=S * K, K=1, B=B),
        "admm": _updater(device, types, hidden, {"name": "admm", "h_steps": 1}, S=S, K=K, B=B),
        "costate": _updater(device, types, hidden, {"name": "costate"}, S=S, K=K, B=B),
    }
    plain = _plain(device, types, hidden, S=S * K, B=B)
    timings: dict[str, list[float]] = {name: [] for name in ("plain", *ours)}
    for update in (plain, *ours.values()):  # nothing is compiled while it is timed
        _time(device, update, 3)
    for _ in range(PAIRS):
        for name, update in (("plain", plain), *ours.items()):
            timings[name].append(_time(device, update, count) / count)
    found["bench"]["step"] = {"types": types, "hidden": hidden, "B": B, "S": S, "K": K, "seconds": timings}
    medians = {name: statistics.median(values) for name, values in timings.items()}
    found["ratios"]["bptt_over_plain"] = medians["plain"] / medians["bptt"]  # tokens/s
    found["ratios"]["admm_over_plain"] = medians["admm"] / medians["plain"]  # time
    found["ratios"]["costate_over_plain"] = medians["costate"] / medians["plain"]  # time


def _updater(
    device: str, types: int, hidden: int, method: dict[str, Any], S: int, K: int, B: int
) -> Callable[[], None]:
    config = Experiment.model_validate(
        {"model": {"hidden": hidden}, "objective": {"block": B}, "method": method,
         "batching": {"streams": S, "blocks": K}}
    )  # fmt: skip
    model = build_model(config.model, config.run, types).to(device)
    plan, theta = plan_epoch(config, 1, K), Theta(model, config.optimizer)
    boundaries = Boundaries.for_plan(plan, S, K, model)
    tokens = torch.randint(types, (2, B, S, K), generator=torch.Generator().manual_seed(0)).to(device)
    window = make_window(tokens[0], tokens[1], torch.float32, tokens=B * S * K, opens=False)
    state = [model.zero_state(S)]

    def update() -> None:
        state[0] = visit(model, plan, theta, window, 0, boundaries, state[0], Alone()).carry

    return update


def _plain(device: str, types: int, hidden: int, S: int, B: int) -> Callable[[], None]:
    """The loop that people write by hand, well written: cuDNN, carried state, no needless synchronisation."""
    embedding = torch.nn.Embedding(types, hidden).to(device)
    rnn = torch.nn.GRU(hidden, hidden).to(device)
    head = torch.nn.Linear(hidden, types).to(device)
    parameters = [p for module in (embedding, rnn, head) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.003)
    tokens = torch.randint(types, (2, B, S), generator=torch.Generator().manual_seed(0)).to(device)
    state = [torch.zeros(1, S, hidden, device=device)]

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        h, last = rnn(embedding(tokens[0]), state[0])
        torch.nn.functional.cross_entropy(head(h).flatten(0, 1), tokens[1].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        state[0] = last.detach()

    return update


def _time(device: str, update: Callable[[], None], count: int) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        update()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

"""Checks and benchmarks on one GPU, in one call: python tests/gpu/run.py [--only PART …] [--limit SECONDS] [--out DIR]

Prints a short table and writes gpu.json: device, versions, configuration, every timing, ratios. Stops starting new
parts when the time limit is near. On a machine without a GPU, `--device cpu` tries the program at a small size.
`--sweep "table2 --set run.epochs=5"`, once or more, runs the paper's tables in the time that is left: `sweeps.py`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from problems_gpu import (  # noqa: E402
    CAPTURED,
    CELLS,
    METHODS,
    RECORDED,
    TOLERANCES,
    as_trained,
    difference,
    float32s,
    long_sequence,
    runs,
)
from sweeps import run_sweeps  # noqa: E402

from tpdist.experiments.measure import machine, run  # noqa: E402
from tpdist.models.cells import CUDNN_STEPS  # noqa: E402

SMALL: dict[str, dict[str, Any]] = {  # sizes for a machine without a GPU
    "step": {"types": 1_000, "hidden": 50, "rounds": 2},
    "arms": {"types": 1_000, "hidden": 50, "rounds": 2},
    "head": {"types": 1_000, "hidden": 50, "many": 2_000, "rounds": 2},
    "batch": {"types": 1_000, "hidden": 50, "tokens": 4_000, "grown": (20_000, 200_000), "rounds": 2},
    "evaluation": {"types": 1_000, "hidden": 50, "tokens": 8_193, "rounds": 2},
    "timeparallel": {"hidden": 50, "lengths": (1_024, 4_096), "rounds": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--limit", type=float, default=480.0, help="seconds")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=("none", "checks", *SMALL), help="some parts")
    parser.add_argument("--sweep", action="append", default=[], metavar="WHAT …", help="as after `tpdist reproduce`")
    options = parser.parse_args()
    deadline = time.monotonic() + options.limit
    found: dict[str, Any] = {"machine": machine(options.device), "checks": {}, "bench": {}, "ratios": {}}
    found["machine"]["cudnn"] = torch.backends.cudnn.version()
    parts: list[tuple[str, Callable[[], None]]] = [
        ("checks", lambda: checks(options.device, found)),
        *((what, partial(bench, what, options.device, found)) for what in SMALL),
    ]
    failed = False
    for name, part in parts:
        if options.only and name not in options.only:
            continue
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
    if options.sweep:
        failed |= not run_sweeps(options.sweep, options.device, Path.cwd(), options.out, deadline)
    sys.exit(failed or not all(passed(one) for one in found["checks"].values()))


def checks(device: str, found: dict[str, Any]) -> None:
    """The device's numbers against the CPU's. One that fails does not keep the others from being made."""
    for name, (kind, check) in wanted(device).items():
        one: dict[str, Any] = {"tolerance": TOLERANCES[kind]}
        try:
            one["value"] = check()
        except Exception as error:
            one["error"] = f"{type(error).__name__}: {error}"
        found["checks"][name] = one
        if not passed(one):
            print(f"{name}: {one.get('error', one.get('value'))}, wanted {one['tolerance']:.0e} at most")
    failed = sum(not passed(one) for one in found["checks"].values())
    print(f"{len(found['checks'])} checks against the CPU, {failed} failed")


def wanted(device: str) -> dict[str, tuple[str, Callable[[], float]]]:
    """By name: what is compared, in which of TOLERANCES."""
    all_of_them: dict[str, tuple[str, Callable[[], float]]] = {}
    for cell, model in CELLS.items():
        for method in METHODS:
            all_of_them[f"{cell}, {method}"] = "float64", partial(difference, device, model, method)
            if device == "cuda" and method in CAPTURED:
                graph = partial(difference, device, model, method, captured=True)
                all_of_them[f"{cell}, {method}, as a graph"] = "float64", graph
    for name, optimizer in RECORDED.items() if device == "cuda" else ():
        graph = partial(difference, device, CELLS["gru"], "costate", captured=True, optimizer=optimizer)
        all_of_them[f"gru, costate, {name}, as a graph"] = "float64", graph
    for cell in ("gru", "lstm"):
        all_of_them[f"{cell}, {CUDNN_STEPS + 9:,} steps"] = "float64", partial(long_sequence, device, cell)
    all_of_them |= {name: ("float32", partial(check, device)) for name, check in float32s().items()}
    all_of_them |= {name: ("run", partial(as_trained, device, parts)) for name, parts in runs(device).items()}
    return all_of_them


def passed(check: dict[str, Any]) -> bool:
    """A NaN is no agreement."""
    return check.get("value", float("nan")) <= check["tolerance"]


def bench(what: str, device: str, found: dict[str, Any]) -> None:
    """`tpdist bench <what>`; at a small size where there is no GPU."""
    report = run(what, device, print, **({} if device == "cuda" else SMALL[what]))
    found["bench"][what] = report
    found["ratios"] |= report["ratios"]


if __name__ == "__main__":
    main()

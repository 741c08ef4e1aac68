"""Checks and benchmarks on one GPU, in one call: python tests/gpu/run.py [--out DIR] [--limit SECONDS] [--device cuda]

Prints a short table and writes gpu.json: device, versions, configuration, every timing, ratios. Stops starting new
parts when the time limit is near. On a machine without a GPU, `--device cpu` tries the program at a small size.
"""

import argparse
import importlib
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

from problems_gpu import CAPTURED, CELLS, METHODS, difference  # noqa: E402

from tpdist.experiments.measure import machine  # noqa: E402

TOLERANCE = 1e-8
SMALL: dict[str, dict[str, Any]] = {  # sizes for a machine without a GPU
    "step": {"types": 1_000, "hidden": 50, "rounds": 2},
    "head": {"types": 1_000, "hidden": 50, "many": 2_000, "rounds": 2},
    "batch": {"types": 1_000, "hidden": 50, "tokens": 4_000, "grown": (20_000, 200_000), "rounds": 2},
    "timeparallel": {"hidden": 50, "lengths": (1_024, 4_096), "rounds": 2},
}


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
        *((what, partial(bench, what, options.device, found)) for what in SMALL),
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


def checks(device: str, found: dict[str, Any]) -> None:
    """The device's float64 numbers against the CPU's."""
    for cell, model in CELLS.items():
        for method in METHODS:
            found["checks"][f"{cell}, {method}"] = difference(device, model, method)
            if device == "cuda" and method in CAPTURED:
                found["checks"][f"{cell}, {method}, as a graph"] = difference(device, model, method, captured=True)
    worst = max(found["checks"], key=found["checks"].get)
    print(f"{len(found['checks'])} checks against the CPU; largest difference {found['checks'][worst]:.1e} ({worst})")


def bench(what: str, device: str, found: dict[str, Any]) -> None:
    """`tpdist bench <what>`; at a small size where there is no GPU."""
    one = importlib.import_module(f"tpdist.experiments.{what}").bench
    report = one(print, device, **({} if device == "cuda" else SMALL[what]))
    found["bench"][what] = report
    found["ratios"] |= report["ratios"]


if __name__ == "__main__":
    main()

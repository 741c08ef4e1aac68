"""What all benchmarks share: timing in turns, peak memory in a process of its own, the table, what `--json` holds."""

import importlib
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tpdist.config import Run
from tpdist.errors import TpdistError
from tpdist.training.checks import set_kernels, settings_kept

Say = Callable[[str], None]
PROC = Path("/proc/self")
RESET_PEAK = "5"  # written to its clear_refs; proc(5)


def run(what: str, device: str, say: Say, **options: Any) -> dict[str, Any]:
    """The benchmark of that name: what `bench` of `experiments/bench/<what>.py` returns, which takes its options."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TpdistError("--device: torch sees no CUDA device here; write cpu")
    with settings_kept():
        set_kernels(Run())
        return importlib.import_module(f"tpdist.experiments.bench.{what}").bench(say, device, **options)


def machine(device: str = "cpu") -> dict[str, Any]:
    """The device and the versions that a figure belongs to."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def in_turns(
    parts: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", each: int = 1, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of every part, A B A B …, so that a machine's moods meet all alike; `each` calls make one timing."""
    for part in parts.values():  # nothing is loaded, compiled or allocated for the first time while it is timed
        for _ in range(warm):
            part()
    timings: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            wait_for(device)
            began = time.perf_counter()
            for _ in range(each):
                part()
            wait_for(device)
            timings[name].append((time.perf_counter() - began) / each)
    return timings


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def medians(timings: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in timings.items()}


def print_timings(timings: Mapping[str, list[float]], say: Say) -> None:
    width = max(len(name) for name in timings)
    say(f"{'':<{width}}    median     least      most   (milliseconds)")
    for name, values in timings.items():
        figures = (statistics.median(values), min(values), max(values))
        say(f"{name:<{width}}  " + "  ".join(f"{1e3 * value:8.1f}" for value in figures))


def report(
    what: str, device: str, config: dict[str, Any], timings: dict[str, Any], ratios: dict[str, float], say: Say
) -> dict[str, Any]:
    """Print the ratios; what `--json` writes."""
    width = max(len(name) for name in ratios)
    for name, value in ratios.items():
        say(f"{name:<{width}}  {value:.3g}")
    return {"bench": what, "machine": machine(device), "config": config, "timings": timings, "ratios": ratios}


class Peak:
    """Bytes at most in use since it was made, beyond what was in use then: of this process, or of the GPU's memory."""

    def __init__(self, device: str = "cpu"):
        self._device = device
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            if not PROC.is_dir():
                raise TpdistError(f"memory is measured through {PROC}, which only Linux has; run this bench there")
            (PROC / "clear_refs").write_text(RESET_PEAK)
            self._before = _status("VmRSS")

    def bytes(self) -> int:
        now = torch.cuda.max_memory_allocated() if self._device == "cuda" else _status("VmHWM")
        return now - self._before


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function`, defined at the top of a module, returns in a process that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _status(field: str) -> int:
    lines = (PROC / "status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))

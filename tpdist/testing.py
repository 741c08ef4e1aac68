"""Run a function on N ranks of this machine, each a process of its own, joined by Gloo. For tests, here and yours."""

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

R = TypeVar("R")
TIMEOUT_S = 120


def run_ranks(function: Callable[..., R], ranks: int, *arguments: Any) -> list[R]:
    """`function(*arguments)` on every rank of a process group; the results in the order of the ranks.

    The function and its arguments are pickled: define it at the top of a module. Raises RuntimeError with the
    first rank's traceback if any rank fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        context = mp.get_context("spawn")
        processes = [
            context.Process(target=_rank, args=(function, rank, ranks, directory, arguments), daemon=True)
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT_S)
        alive = [i for i, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
        results = []
        failures = list(Path(directory).glob("*.error"))
        if failures:
            # the rank that failed first tells why; the others lost their neighbour
            first = min(failures, key=lambda path: path.stat().st_mtime)
            raise RuntimeError(f"rank {first.stem}:\n{first.read_text()}")
        if alive:
            raise RuntimeError(f"ranks {alive} did not end within {TIMEOUT_S} s")
        for rank in range(ranks):
            results.append(pickle.loads((Path(directory) / f"{rank}.result").read_bytes()))
        return results


def _rank(function: Callable[..., Any], rank: int, ranks: int, directory: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        dist.init_process_group("gloo", f"file://{directory}/rendezvous", rank=rank, world_size=ranks)
        result = function(*arguments)
        (Path(directory) / f"{rank}.result").write_bytes(pickle.dumps(result))
        dist.destroy_process_group()
    except BaseException:
        (Path(directory) / f"{rank}.error").write_text(traceback.format_exc())
        raise

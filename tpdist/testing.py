"""Run a function on N ranks of this machine, each a process of its own, joined by Gloo.

For tests, here and yours, and for the benchmarks and `plan --validate`.
"""

import faulthandler
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

R = TypeVar("R")
TIMEOUT_S = 540.0
GRACE_S = 5.0
LOOK_EVERY_S = 1.0
LOOKS = 10  # at where a rank stands, within the timeout
# what ranks need and what costs seconds to import; the first optimiser of a process makes torch import its compiler
PRELOAD = ["torch._dynamo", "torch.distributed.device_mesh", "tpdist.training.trainer"]


def run_ranks(function: Callable[..., R], ranks: int, *arguments: Any) -> list[R]:
    """`function(*arguments)` on every rank of a process group; the results in the order of the ranks.

    The function and its arguments are pickled: define it at the top of a module. Raises RuntimeError with the
    first rank's traceback if any rank fails, or with where each stands if one does not end.
    """
    with tempfile.TemporaryDirectory() as directory:
        context = _context()
        common = (directory, TIMEOUT_S, dict(os.environ))
        processes = [
            context.Process(target=_rank, args=(function, rank, ranks, arguments, *common), daemon=True)
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and any(process.is_alive() for process in processes):
            connection.wait([process.sentinel for process in processes if process.is_alive()], LOOK_EVERY_S)
            if any(process.exitcode for process in processes):
                # the others may wait for it for ever; most fail at once by losing it
                deadline = min(deadline, time.monotonic() + GRACE_S)
        alive = [i for i, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
        results = []
        failures = {int(path.stem): path for path in Path(directory).glob("*.error")}
        vanished = [i for i, process in enumerate(processes) if process.exitcode and i not in {*alive, *failures}]
        wrong = [f"ranks {vanished} ended with exit code {processes[vanished[0]].exitcode}"] if vanished else []
        if failures:
            # the rank that failed first tells why; the others lost their neighbour
            first = min(failures, key=lambda rank: failures[rank].stat().st_mtime)
            wrong.append(f"rank {first}:\n{failures[first].read_text()}")
        if wrong:
            raise RuntimeError("\n".join(wrong))
        if alive:
            stacks = "\n".join(f"rank {i}:\n{_last_look(Path(directory) / f'{i}.stack')}" for i in alive)
            raise RuntimeError(f"ranks {alive} did not end within {TIMEOUT_S} s\n{stacks}")
        for rank in range(ranks):
            results.append(pickle.loads((Path(directory) / f"{rank}.result").read_bytes()))
        return results


def _context() -> SpawnContext | ForkServerContext:
    """How ranks are started: as forks of one process that has imported torch, so that hundreds of them pay for it once.

    Where there is a GPU each starts from nothing: a fork cannot use CUDA once an import has touched it.
    """
    if torch.cuda.is_available() or "forkserver" not in mp.get_all_start_methods():
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _rank(
    function: Callable[..., Any],
    rank: int,
    ranks: int,
    arguments: tuple[Any, ...],
    directory: str,
    timeout_s: float,
    environment: dict[str, str],
) -> None:
    os.environ.clear()  # a fork has that of the process it comes from
    os.environ.update(environment)
    torch.set_num_threads(1)
    stack = (Path(directory) / f"{rank}.stack").open("w")
    faulthandler.dump_traceback_later(timeout_s / LOOKS, repeat=True, file=stack)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        dist.init_process_group("gloo", f"file://{directory}/rendezvous", rank=rank, world_size=ranks)
        result = function(*arguments)
        (Path(directory) / f"{rank}.result").write_bytes(pickle.dumps(result))
        dist.destroy_process_group()
    except BaseException:
        (Path(directory) / f"{rank}.error").write_text(traceback.format_exc())
        raise


def _last_look(stack: Path) -> str:
    return stack.read_text().rpartition("Timeout (")[2] if stack.exists() else "has not begun"

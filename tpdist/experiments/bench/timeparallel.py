"""`tpdist bench timeparallel`: one gradient through the recurrence over a long text, all blocks at once, against BPTT.

By length of the text on one worker, and by number of workers, each a process with one thread, for the text of 2^17
tokens. How: `long_gradient.py`.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tpdist.config import Model, Run
from tpdist.errors import TpdistError
from tpdist.experiments.long_gradient import TOLERANCE, Cost, in_parallel, relative_error, sequential, torchs
from tpdist.experiments.measure import Say, in_turns, medians, print_timings, report
from tpdist.experiments.plain import random_tokens
from tpdist.models import LanguageModel, build_model
from tpdist.parallel import Workers, balanced
from tpdist.testing import run_ranks

TYPES = 10_000
SHORTEST_TEXT, MAIN_TEXT = 2**10, 2**17  # the main one is timed in turns, the others once
ROUNDS = 5
SIDE_BY_SIDE = {"cpu": 256, "cuda": 4096}  # blocks; enough rows for a matrix product to run at full rate
SHORTEST = 64  # steps in a block
TORCH_UP_TO = 2**15  # tokens for which torch's own GRU is timed: its graph takes gigabytes at 2^17
WORKERS = (1, 2)


def powers_up_to(longest: int) -> tuple[int, ...]:
    """Lengths of text, from `SHORTEST_TEXT` on. Raises TpdistError for one that is no power of 2."""
    if longest < SHORTEST_TEXT or longest & (longest - 1):
        raise TpdistError(f"--longest: must be a power of 2, at least {SHORTEST_TEXT}; got {longest}")
    return tuple(2**n for n in range(SHORTEST_TEXT.bit_length() - 1, longest.bit_length()))


def bench(
    say: Say,
    device: str = "cpu",
    longest: int = MAIN_TEXT,
    hidden: int = 200,
    lengths: tuple[int, ...] | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Cost against length; on a CPU against workers, too. longest: in tokens; lengths: in place of all up to it."""
    lengths = lengths or powers_up_to(longest)
    main = max(n for n in lengths if n <= MAIN_TEXT or n == lengths[0])
    model = _model(hidden, device)
    say(f"{'tokens':>9}  {'B':>5}  sweeps: states, costates  passes  {'BPTT s':>8}  parallel s  speed-up     error")
    timings: dict[str, list[float]] = {}
    rows = []
    for tokens in lengths:
        row, timed = _at_length(model, tokens, device, rounds if tokens == main else 1, say)
        rows.append(row)
        timings = timed if tokens == main else timings
    print_timings(timings, say)
    ratios = {}
    for row in rows:
        if row["tokens"] >= main:
            ratios[f"speedup_{row['tokens']}"] = row["sequential_s"] / row["parallel_s"]
            ratios[f"error_{row['tokens']}"] = row["error"]
    if device == "cpu":
        shared = by_workers(WORKERS, main, hidden, rounds)
        timings, time_of = timings | shared, medians(shared)
        for n in WORKERS:
            say(f"{main:,} tokens, {n} workers, one thread each: {time_of[f'workers_{n}']:.3f} s")
        for n in WORKERS[1:]:
            ratios[f"strong_efficiency_{n}"] = time_of["workers_1"] / (n * time_of[f"workers_{n}"])
    config = {"cell": "gru", "hidden": hidden, "tolerance": TOLERANCE, "lengths": list(lengths)}
    return report("timeparallel", device, config, timings, ratios, say) | {"rows": rows}


def _model(hidden: int, device: str) -> LanguageModel:
    model = build_model(Model(hidden=hidden), Run(), TYPES).to(device)
    model.embedding.requires_grad_(False)
    return model


def _text(tokens: int, hidden: int) -> tuple[Tensor, Tensor]:
    """Ids [T]; the gradient of the loss at every h [T, H]."""
    return random_tokens(TYPES, tokens), torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(1))


def _at_length(
    model: LanguageModel, tokens: int, device: str, rounds: int, say: Say
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """A row of the table, and its timings."""
    ids, up = (x.to(device) for x in _text(tokens, model.state_size))
    blocks = cut(tokens, device)
    costs = (Cost(), Cost())
    error = relative_error(in_parallel(model, ids, up, blocks, *costs), sequential(model, ids, up))
    parts: dict[str, Callable[[], object]] = {
        "sequential": lambda: sequential(model, ids, up),
        "parallel": lambda: in_parallel(model, ids, up, blocks),
    }
    timings = in_turns(parts, rounds, device, warm=0)
    time_of = medians(timings)
    row = {
        "tokens": tokens,
        "B": tokens // blocks,
        "sweeps": [cost.sweeps for cost in costs],
        "passes": sum(cost.passes for cost in costs),
        "sequential_s": time_of["sequential"],
        "parallel_s": time_of["parallel"],
        "error": error,
    }
    if device == "cpu" and tokens <= TORCH_UP_TO:
        row["torch_s"] = in_turns({"torch": lambda: torchs(model, ids, up)}, 1, warm=0)["torch"][0]
    say(
        f"{tokens:>9,}  {row['B']:>5}  {costs[0].sweeps:>14}, {costs[1].sweeps:>8}  {row['passes']:>6.2f}  "
        f"{row['sequential_s']:>8.3f}  {row['parallel_s']:>10.3f}  "
        f"{row['sequential_s'] / row['parallel_s']:>8.2f}  {error:>8.1e}"
        + (f"   torch's GRU {row['torch_s']:.3f} s" if "torch_s" in row else "")
    )
    return row, timings


def cut(tokens: int, device: str) -> int:
    """How many blocks: as many as fill the device, but none shorter than `SHORTEST` steps."""
    return max(1, min(SIDE_BY_SIDE[device], tokens // SHORTEST))


def by_workers(counts: tuple[int, ...], tokens: int, hidden: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of the parallel gradient on so many workers, who share the blocks of one text; rounds in turns."""
    found: dict[str, list[float]] = {f"workers_{count}": [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            found[f"workers_{count}"].append(run_ranks(_on_worker, count, tokens, hidden)[0])
    return found


def _on_worker(tokens: int, hidden: int) -> float:
    """Its second gradient, from when all begin to when all have it."""
    workers = Workers.join((1, dist.get_world_size()), torch.device("cpu"))
    model, (ids, up), blocks = _model(hidden, "cpu"), _text(tokens, hidden), cut(tokens, "cpu")
    own = balanced(blocks, workers.count)[workers.place.time]
    span = slice(own.start * tokens // blocks, own.stop * tokens // blocks)
    seconds = 0.0
    for _ in range(2):
        workers.wait_for_all()
        began = time.perf_counter()
        in_parallel(model, ids[span], up[span], len(own), workers=workers)
        seconds = time.perf_counter() - began
    return seconds

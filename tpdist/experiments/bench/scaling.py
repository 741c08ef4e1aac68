"""Weak and strong scaling of batch mode over workers, bare (a process group of this machine) and under Ray.

Synthetic tokens of 10,000 types, one thread a worker, ADMM on persistent states: the paper's cluster (Section 2.1).
An update is a pass over the whole corpus. Rounds are interleaved, so that a machine's moods meet every setting alike.
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tpdist.config import Experiment
from tpdist.data import Store, prepare
from tpdist.experiments.measure import Say, report
from tpdist.launch.many import run_on_workers
from tpdist.parallel import Workers
from tpdist.testing import run_ranks
from tpdist.training.progress import Silent
from tpdist.training.result import Result
from tpdist.training.run_dir import RunDirectory
from tpdist.training.worker import run_worker

TOKENS_PER_WORKER = 50_000
UPDATES = 2
ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """One run: seconds an update, tokens/s of all workers, shares of waiting, bytes an update."""

    under: str
    workers: int
    tokens: int
    seconds: float
    tokens_per_second: float
    waiting: float
    bytes_per_update: float


def scaling(
    workers: list[int],
    address: str | None,
    say: Say,
    tokens: int = TOKENS_PER_WORKER,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Run everything; print a table with `say`; what `--json` writes: machine, config, rows of every run, ratios."""
    most = max(workers)
    sizes = sorted({(n, n * tokens) for n in workers} | {(n, most * tokens) for n in workers})
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        for count, size in sizes:
            make_store(batch_config(count, size, home))
        for number in range(rounds):
            for count, size in sizes:
                config = batch_config(count, size, home)
                for under in ("bare", "ray"):
                    say(f"round {number + 1}/{rounds}: {count} workers, {size:,} tokens, {under}")
                    where = home / f"{number}-{count}-{size}-{under}"
                    result = run_bare(config, where) if under == "bare" else _ray(config, where, address)
                    rows.append(_row(under, size, result))
    _print(rows, say)
    config = batch_config(most, most * tokens, Path("stores")).model_dump(mode="json")
    found = report("scaling", "cpu", config, {"seconds": [row.seconds for row in rows]}, ratios(rows, tokens), say)
    return found | {"rows": [vars(row) for row in rows]}


def ratios(rows: list[Measured], tokens: int) -> dict[str, float]:
    """Efficiencies under bare processes and under Ray, and Ray's time over that of bare processes, from medians.

    Weak: `tokens` a worker. Strong: as many tokens as the most workers have there, whatever the workers.
    """

    def seconds(under: str, workers: int, size: int) -> float:
        return statistics.median(
            row.seconds for row in rows if (row.under, row.workers, row.tokens) == (under, workers, size)
        )

    counts = sorted({row.workers for row in rows})
    least, most = counts[0], counts[-1]
    found = {}
    for under, mark in (("bare", ""), ("ray", "_ray")):
        for n in counts[1:]:
            found[f"weak_efficiency_{n}{mark}"] = seconds(under, least, least * tokens) / seconds(under, n, n * tokens)
            strong = seconds(under, least, most * tokens) * least
            found[f"strong_efficiency_{n}{mark}"] = strong / (n * seconds(under, n, most * tokens))
    return found | {"ray_over_bare": seconds("ray", most, most * tokens) / seconds("bare", most, most * tokens)}


def batch_config(workers: int, tokens: int, home: Path, updates: int = UPDATES) -> Experiment:
    """Batch mode by ADMM, all workers along time; its store lies in `home`."""
    source = {"types": 10_000, "states": 64, "branching": 512, "tokens": tokens}
    return Experiment.model_validate(
        {
            "data": {"recipe": "synthetic", "store": str(home / f"store-{tokens}"), "synthetic": source},
            "model": {"hidden": 50},
            "method": {"name": "admm", "first": "persistent"},
            "batching": {"mode": "batch", "streams": 1},
            "run": {"epochs": updates, "device": "cpu"},
            "cluster": {"workers": workers, "mesh": [1, workers]},
        }
    )


def make_store(config: Experiment) -> None:
    """Once for every text."""
    if not Path(str(config.data.store)).exists():
        prepare(config.data, str(config.data.store))


def run_bare(config: Experiment, where: Path) -> Result:
    """On a process group of this machine."""
    RunDirectory.create(config, where)
    results = run_ranks(_bare_rank, config.cluster.limits[1], config, str(where))
    assert results[0] is not None
    return results[0]


def _bare_rank(config: Experiment, where: str) -> Result | None:
    workers = Workers.join(config.mesh(), torch.device("cpu"), config.cluster.gradient_dtype)
    store = Store.open(str(config.data.store))
    return run_worker(config, store, RunDirectory.open(where), Silent(), False, workers)


def _ray(config: Experiment, where: Path, address: str | None) -> Result:
    run = RunDirectory.create(config, where)
    return run_on_workers(config, Store.open(str(config.data.store)), run, Silent(), None, address)


def _row(under: str, tokens: int, result: Result) -> Measured:
    sent = result.boundary_bytes + result.carried_bytes + result.gradient_bytes
    return Measured(
        under=under,
        workers=result.workers,
        tokens=tokens,
        seconds=result.seconds / result.steps,
        tokens_per_second=result.tokens_per_second,
        waiting=result.waiting_neighbours + result.waiting_reduction,
        bytes_per_update=sent / result.steps,
    )


def _print(rows: list[Measured], say: Say) -> None:
    say("under  workers   tokens  s/update  tokens/s  waiting  bytes/update")
    for key in sorted({(row.under, row.workers, row.tokens) for row in rows}):
        same = [row for row in rows if (row.under, row.workers, row.tokens) == key]
        seconds, speed, waiting = (
            statistics.median(getattr(row, name) for row in same)
            for name in ("seconds", "tokens_per_second", "waiting")
        )
        under, workers, tokens = key
        sent = same[0].bytes_per_update
        say(f"{under:<5}  {workers:>7}  {tokens:>7,}  {seconds:>8.3f}  {speed:>8,.0f}  {waiting:>7.1%}  {sent:>12,.0f}")

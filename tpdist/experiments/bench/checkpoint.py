"""`tpdist bench checkpoint`: throughput with a checkpoint every 30 s against throughput without any.

One trainer with the settings of `configs/ptb_minibatch.yaml`, on synthetic tokens. Slices of 30 s take turns, with and
without, in the order A B B A …; a slice with one begins to save it, and trains on while it is written.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

from tpdist.config import Experiment
from tpdist.data import Store
from tpdist.errors import TpdistError
from tpdist.experiments.bench.scaling import make_store
from tpdist.experiments.measure import Say, report
from tpdist.training.batches import Batch
from tpdist.training.progress import Silent
from tpdist.training.run_dir import RunDirectory
from tpdist.training.trainer import Trainer

SLICE_S = 30.0
PAIRS = 5
TOKENS = 200_000


def bench(
    say: Say,
    device: str = "cpu",
    types: int = 10_000,
    hidden: int = 200,
    seconds: float = SLICE_S,
    pairs: int = PAIRS,
) -> dict[str, Any]:
    """`checkpoint_overhead`: the share of throughput that is lost, the median over pairs of slices."""
    speeds: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as directory:
        config = _config(types, hidden, device, Path(directory))
        make_store(config)
        run = RunDirectory.create(config, Path(directory) / "run")
        trainer = Trainer(config, Store.open(str(config.data.store)), run, Silent())
        batches = chain.from_iterable(map(trainer.batches.epoch, count(1)))
        # nothing is to be loaded or allocated for the first time in a slice that counts
        _slice(trainer, batches, seconds / 10, saves=True)
        for number in range(pairs):
            for name in ("without", "with") if number % 2 == 0 else ("with", "without"):
                speeds[name].append(_slice(trainer, batches, seconds, saves=name == "with"))
            say(
                f"pair {number + 1}/{pairs}: {speeds['without'][-1]:,.0f} tokens/s without, "
                f"{speeds['with'][-1]:,.0f} with a checkpoint"
            )
        depot = trainer.writer.depot
        if not depot.names():
            raise TpdistError(f"{depot.where}: holds no checkpoint")
        size = sum(path.stat().st_size for path in Path(depot.where, depot.names()[-1]).iterdir())
    say(f"one checkpoint is {size / 2**20:.1f} MiB")
    lost = [1 - after / before for before, after in zip(*speeds.values(), strict=True)]
    ratios = {"checkpoint_overhead": statistics.median(lost), "most": max(lost), "least": min(lost)}
    config = config.model_dump(mode="json") | {"slice_s": seconds, "bytes": size}
    return report("checkpoint", device, config, speeds, ratios, say)


def _slice(trainer: Trainer, batches: Iterator[Batch], seconds: float, saves: bool) -> float:
    """Tokens a second over at least that time; a checkpoint that is saved is whole at its end."""
    before, began = trainer.state.tokens, time.monotonic()
    if saves:
        trainer.save_checkpoint()
    while time.monotonic() - began < seconds:
        trainer.update(next(batches))
    trainer.writer.wait()
    return (trainer.state.tokens - before) / (time.monotonic() - began)


def _config(types: int, hidden: int, device: str, home: Path) -> Experiment:
    return Experiment.model_validate(
        {
            "data": {
                "recipe": "synthetic",
                "store": str(home / "store"),
                "synthetic": {"types": types, "states": 64, "branching": min(512, types // 2), "tokens": TOKENS},
            },
            "model": {"hidden": hidden},
            "objective": {"block": 20, "weight": 0.1},
            "method": {"name": "admm", "h_steps": 1, "starts": "held", "first": "forward"},
            "batching": {"streams": 4, "blocks": 8},
            "optimizer": {"name": "adam", "lr": 0.003, "clip": 0.5},
            "run": {"device": device},
        }
    )

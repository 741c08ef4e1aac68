"""`tpdist bench overlap`: the share of a step that 2 workers wait for neighbours and for the sum of gradients."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from tpdist.errors import TpdistError
from tpdist.experiments.bench.scaling import TOKENS_PER_WORKER, batch_config, make_store, run_bare
from tpdist.experiments.measure import Say, report

ROUNDS = 5
WORKERS = 2


def bench(say: Say, device: str = "cpu", tokens: int = TOKENS_PER_WORKER, rounds: int = ROUNDS) -> dict[str, Any]:
    """Batch mode as in `tpdist bench scaling`, bare processes on CPUs, one thread each."""
    if device != "cpu":
        raise TpdistError(f"--device: two workers on one GPU do not overlap; must be cpu, got {device}")
    shares: dict[str, list[float]] = {"neighbours": [], "reduction": [], "seconds": []}
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        config = batch_config(WORKERS, WORKERS * tokens, home)
        make_store(config)
        for number in range(rounds):
            result = run_bare(config, home / str(number))
            shares["neighbours"].append(result.waiting_neighbours)
            shares["reduction"].append(result.waiting_reduction)
            shares["seconds"].append(result.seconds / result.steps)
            say(
                f"round {number + 1}/{rounds}: {shares['seconds'][-1]:.3f} s an update; waiting for neighbours "
                f"{result.waiting_neighbours:.2%}, for the sum of gradients {result.waiting_reduction:.2%}"
            )
    both = [a + b for a, b in zip(shares["neighbours"], shares["reduction"], strict=True)]
    return report(
        "overlap", device, config.model_dump(mode="json"), shares, {"waiting_share": statistics.median(both)}, say
    )

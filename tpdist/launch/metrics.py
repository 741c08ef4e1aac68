"""A worker's figures as metrics of Ray: they stand on every node's Prometheus port, and so in Ray's dashboard.

    ray_tpdist_tokens_per_second{run, worker}   of the worker's own blocks
    ray_tpdist_waiting_share{run, worker, on}   of the time, on `neighbours` and on `gradients`
    ray_tpdist_step, _perplexity, _primal_residual, _dual_residual{run}   of the run, as its leader has them

Ray drops them when the worker's process ends.
"""

import time
from pathlib import Path

from ray.util.metrics import Gauge

from tpdist.training.progress import Status

EVERY_S = 1.0
OF_THE_RUN = {  # Ray takes ASCII alone
    "step": "updates so far",
    "perplexity": "perplexity of the training tokens of the epoch so far",
    "primal": "norm of targets less predictions over the epoch so far",
    "dual": "norm of lambda times the change of predictions over the epoch so far",
}
NAMES = {"primal": "primal_residual", "dual": "dual_residual"}


class Metrics:
    """Takes a status after every update, and tells Ray once a second."""

    def __init__(self, run: str, rank: int):
        self._tags = {"run": Path(run).name}
        self._worker = {**self._tags, "worker": str(rank)}
        self._told = 0.0
        self._speed = Gauge("tpdist_tokens_per_second", "of the worker's own blocks", ("run", "worker"))
        self._waiting = Gauge("tpdist_waiting_share", "share of the time that it waits", ("run", "worker", "on"))
        self._of_the_run = {
            name: Gauge(f"tpdist_{NAMES.get(name, name)}", what, ("run",))
            for name, what in OF_THE_RUN.items()
            if rank == 0
        }

    def tell(self, status: Status) -> None:
        now = time.monotonic()
        if now - self._told < EVERY_S:
            return
        self._told = now
        for name, gauge in self._of_the_run.items():
            gauge.set(getattr(status, name), self._tags)
        work = status.workers[0] if status.workers else None
        self._speed.set(work.tokens_per_second if work else status.tokens_per_second, self._worker)
        if work is not None:
            self._waiting.set(work.neighbours, {**self._worker, "on": "neighbours"})
            self._waiting.set(work.reduction, {**self._worker, "on": "gradients"})

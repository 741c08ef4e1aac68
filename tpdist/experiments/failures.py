"""What stragglers and failures cost a long run, by simulation, and how often to save. Pure functions of a seed.

Workers fail independently, on average every `mtbf_s` seconds each; any failure sends all back to the last checkpoint.
A save holds training up for `save_s`. The interval that loses least is near √(2 save_s mtbf_s / P) (Young 1974).
"""

import math
from collections.abc import Mapping

import numpy as np

SPREAD = 0.05  # deviation of workers' step times from their mean; an assumption
DRAWS = 2000


def best_interval(workers: int, mtbf_s: float, save_s: float) -> float:
    """Young's first-order optimum, in seconds of training between two checkpoints."""
    return math.sqrt(2 * save_s * mtbf_s / workers)


def useful_share(
    workers: int, mtbf_s: float, save_s: float, recover_s: float, interval_s: float, work_s: float, seed: int = 0
) -> float:
    """Seconds of work over the seconds that they take, with failures drawn until `work_s` are done and saved."""
    random = np.random.default_rng(seed)
    between = mtbf_s / workers
    clock, done, next_failure = 0.0, 0.0, float(random.exponential(between))
    while done < work_s:
        piece = min(interval_s, work_s - done)
        if clock + piece + save_s <= next_failure:
            clock, done = clock + piece + save_s, done + piece
        else:  # the piece is lost; the clock goes on from the failure
            clock = next_failure + recover_s
            next_failure = clock + float(random.exponential(between))
            if clock > 1e4 * work_s:
                return 0.0
    return work_s / clock


def slowest(workers: int, spread: float, seed: int = 0) -> float:
    """The mean of the slowest of P workers' times, each lognormal of mean 1 with that deviation: all wait for it."""
    if spread == 0:
        return 1.0
    random = np.random.default_rng(seed)
    sigma = math.sqrt(math.log(1 + spread**2))
    draws = [random.lognormal(-(sigma**2) / 2, sigma, workers).max() for _ in range(max(1, DRAWS * 16 // workers))]
    return float(np.mean(draws))


def seconds(parts: Mapping[str, float], workers: int, spread: float) -> float:
    """Of an update, all waiting for the slowest worker. parts: `planning.seconds`."""
    return parts["compute"] * slowest(workers, spread) + parts["neighbours"] + parts["reduction"]

"""What stragglers and failures cost a long run, and how often to save. Pure functions; stragglers are drawn by a seed.

Workers fail independently, on average every `mtbf_s` seconds each; any failure sends all back to the last checkpoint.
A save holds training up for `save_s`. The interval that loses least is near √(2 save_s mtbf_s / P) (Young 1974).
"""

import math
from collections.abc import Mapping

import numpy as np

SPREAD = 0.05  # deviation of workers' step times from their mean; an assumption
DRAWS = 2000
MOST_TRIES = 700.0  # e to this is the largest that a float holds


def best_interval(workers: int, mtbf_s: float, save_s: float) -> float:
    """Young's first-order optimum, in seconds of training between two checkpoints."""
    return math.sqrt(2 * save_s * mtbf_s / workers)


def useful_share(workers: int, mtbf_s: float, save_s: float, recover_s: float, interval_s: float) -> float:
    """Seconds of work over the mean seconds that they take, where they are saved every `interval_s`.

    With failures of a Poisson process, on average every m = `mtbf_s` / P, an interval of τ with its save of s takes
    (m + recovery) (e^((τ + s)/m) - 1): what is lost before a failure and the recovery after it, as often as one comes.
    """
    between = mtbf_s / workers
    tries = (interval_s + save_s) / between
    if tries > MOST_TRIES:
        return 0.0
    return interval_s / ((between + recover_s) * math.expm1(tries))


def slowest(workers: int, spread: float) -> float:
    """The mean of the slowest of P workers' times, each lognormal of mean 1 with that deviation: all wait for it."""
    if spread == 0:
        return 1.0
    random = np.random.default_rng(0)
    sigma = math.sqrt(math.log(1 + spread**2))
    draws = [random.lognormal(-(sigma**2) / 2, sigma, workers).max() for _ in range(max(1, DRAWS * 16 // workers))]
    return float(np.mean(draws))


def seconds(parts: Mapping[str, float], workers: int, spread: float) -> float:
    """Of an update, all waiting for the slowest worker. parts: `costs.seconds`."""
    return parts["compute"] * slowest(workers, spread) + parts["neighbours"] + parts["reduction"]

"""What stragglers and failures cost, against simulations and against numbers worked out by hand."""

import math

import numpy as np
import pytest

from tpdist.experiments import failures


def useful_share_by_simulation(between: float, save: float, recover: float, interval: float, pieces: int) -> float:
    """The oracle of `failures.useful_share`: failures drawn one after another until so many intervals are saved."""
    random = np.random.default_rng(0)
    clock, done, next_failure = 0.0, 0, float(random.exponential(between))
    while done < pieces:
        if clock + interval + save <= next_failure:
            clock, done = clock + interval + save, done + 1
        else:  # the piece is lost; the clock goes on from the failure
            clock = next_failure + recover
            next_failure = clock + float(random.exponential(between))
    return pieces * interval / clock


@pytest.mark.parametrize("mtbf", [1e5, 1e6, 1e7])
def test_failures_cost_what_a_simulation_says(mtbf: float) -> None:
    workers, save, recover = 1000, 10.0, 30.0
    best = failures.best_interval(workers, mtbf, save)
    for interval in (best / 4, best, 4 * best):
        wanted = useful_share_by_simulation(mtbf / workers, save, recover, interval, 3000)
        assert failures.useful_share(workers, mtbf, save, recover, interval) == pytest.approx(wanted, rel=0.1)


def test_failures_at_their_limits() -> None:
    """Never failing costs the saves alone; Young's interval beats a fourth of it and four times it; nothing hangs."""
    assert failures.useful_share(8, 1e15, 5.0, 9.0, 95.0) == pytest.approx(0.95)
    workers, mtbf, save, recover = 1000, 3.6e6, 10.0, 30.0
    best = failures.best_interval(workers, mtbf, save)
    assert best == pytest.approx(math.sqrt(2 * 10 * 3600))
    at = {f: failures.useful_share(workers, mtbf, save, recover, f * best) for f in (0.25, 1, 4)}
    assert at[1] > at[0.25]
    assert at[1] > at[4]
    lost = save / best + (best / 2 + recover) / (mtbf / workers)  # to first order
    assert at[1] == pytest.approx(1 - lost, abs=0.02)
    assert failures.useful_share(1024, 3600.0, 10.0, 7.0, 5000.0) == 0.0  # no update between two failures


def test_stragglers_by_simulation() -> None:
    assert failures.slowest(1000, 0.0) == 1.0
    assert failures.slowest(1, 0.1) == pytest.approx(1.0, abs=0.005)
    assert failures.slowest(2, 0.1) == pytest.approx(1 + 0.1 / math.sqrt(math.pi), abs=0.005)  # of two normals
    assert failures.slowest(1000, 0.1) == pytest.approx(1 + 0.1 * 3.24, abs=0.05)  # of a thousand

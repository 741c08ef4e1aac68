"""The table of decisions after a failure."""

import pytest

from tpdist.launch.policy import Action, Limits, Situation, decide

FIXED = Limits(sizes=(3,), max_restarts=2, restart_window_s=100.0, rejoin_s=30.0)
ELASTIC = Limits(sizes=(2, 3, 4), max_restarts=2, restart_window_s=100.0, rejoin_s=30.0)
GAPS = Limits(sizes=(1, 3), max_restarts=2, restart_window_s=100.0, rejoin_s=30.0)  # two do not fit the windows

# failures, now, wanted, alive, room, limits -> action, workers
TABLE = [
    # room for what is missing: replaced at once
    ([50.0], 50.0, 3, 2, 1, FIXED, Action.GO_ON, 3),
    ([50.0], 50.0, 3, 2, 9, ELASTIC, Action.GO_ON, 3),
    # all were lost
    ([50.0], 50.0, 3, 0, 3, FIXED, Action.GO_ON, 3),
    # nobody was lost, a connection broke
    ([50.0], 50.0, 3, 3, 0, FIXED, Action.GO_ON, 3),
    # no room yet
    ([50.0], 79.9, 3, 2, 0, FIXED, Action.WAIT, 0),
    ([50.0], 79.9, 3, 2, 0, ELASTIC, Action.WAIT, 0),
    # no room within rejoin_s
    ([50.0], 80.0, 3, 2, 0, FIXED, Action.FAIL, 0),
    ([50.0], 80.0, 3, 2, 0, ELASTIC, Action.GO_ON, 2),
    ([50.0], 80.0, 4, 2, 1, ELASTIC, Action.GO_ON, 3),
    ([50.0], 80.0, 4, 1, 0, ELASTIC, Action.FAIL, 0),
    # two are left, and the run can have one or three
    ([50.0], 80.0, 3, 2, 0, GAPS, Action.GO_ON, 1),
    # the wait counts from the newest failure
    ([10.0, 60.0], 80.0, 3, 2, 0, ELASTIC, Action.WAIT, 0),
    # too many failures within the window, whatever the room
    ([10.0, 20.0], 20.0, 3, 2, 1, FIXED, Action.GO_ON, 3),
    ([10.0, 20.0, 30.0], 30.0, 3, 2, 1, FIXED, Action.FAIL, 0),
    ([10.0, 20.0, 30.0], 30.0, 3, 2, 0, ELASTIC, Action.FAIL, 0),
    ([10.0, 20.0, 110.0], 110.0, 3, 2, 1, FIXED, Action.FAIL, 0),
    # old ones no longer count
    ([10.0, 20.0, 111.0], 111.0, 3, 2, 1, FIXED, Action.GO_ON, 3),
    # the run grows, without a failure; the room has gone meanwhile
    ([], 50.0, 4, 3, 1, ELASTIC, Action.GO_ON, 4),
    ([], 50.0, 4, 3, 0, ELASTIC, Action.GO_ON, 3),
]


@pytest.mark.parametrize(("failures", "now", "wanted", "alive", "room", "limits", "action", "workers"), TABLE)
def test_decisions(
    failures: list[float], now: float, wanted: int, alive: int, room: int, limits: Limits, action: Action, workers: int
) -> None:
    decision = decide(Situation(failures, now, wanted, alive, room), limits)
    assert (decision.action, decision.workers) == (action, workers)
    assert bool(decision.reason) == (action is Action.FAIL)


def test_the_reason_names_the_setting_and_the_numbers() -> None:
    often = decide(Situation([1.0, 2.0, 3.0], 3.0, 3, 2, 1), FIXED)
    assert often.reason == "3 failures within 100 s, and cluster.max_restarts is 2"
    empty = decide(Situation([50.0], 90.0, 3, 1, 1), FIXED)
    assert empty.reason == "after 30 s there is room for 2 of the 3 workers that the run needs"
    fewest = decide(Situation([50.0], 90.0, 4, 1, 0), ELASTIC)
    assert fewest.reason == "after 30 s there is room for 1 of the 2 workers that the run needs"


def test_no_restarts_at_all() -> None:
    limits = Limits(sizes=(3,), max_restarts=0, restart_window_s=100.0, rejoin_s=30.0)
    assert decide(Situation([50.0], 50.0, 3, 2, 1), limits).action is Action.FAIL


def test_what_a_dead_worker_held_is_waited_for_whatever_the_setting() -> None:
    limits = Limits(sizes=(3,), max_restarts=2, restart_window_s=100.0, rejoin_s=0.0)
    assert decide(Situation([50.0], 54.9, 3, 2, 0), limits).action is Action.WAIT
    assert decide(Situation([50.0], 55.0, 3, 2, 0), limits).action is Action.FAIL

"""What to do after a failure: a pure function of what is known, so that every case of it can be tested."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

# Ray takes a moment to give back what a dead worker held: a room that is missing sooner says nothing
SETTLE_S = 5.0


class Action(enum.Enum):
    GO_ON = "go on"
    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True)
class Limits:
    """sizes: numbers of workers that the run may have. The others: settings of `cluster`, in seconds and restarts."""

    sizes: tuple[int, ...]
    max_restarts: int
    restart_window_s: float
    rejoin_s: float


@dataclass(frozen=True)
class Situation:
    """Where a run stands after a failure.

    failures: when workers failed, on one clock with `now`, the newest last. wanted: workers before the failure, one of
    the sizes; alive: those of them that are left; room: how many more the cluster could hold at this moment. What
    failed was never the user's own error: that one would come again, and ends the run.
    """

    failures: Sequence[float]
    now: float
    wanted: int
    alive: int
    room: int


@dataclass(frozen=True)
class Decision:
    """workers: how many go on; reason: why not."""

    action: Action
    workers: int = 0
    reason: str = ""


def decide(at: Situation, limits: Limits) -> Decision:
    """Replace what is missing and go on, wait for a node, go on with fewer, or give up.

    Fewer workers are a second choice: only after `rejoin_s` without room for all.
    """
    recent = [time for time in at.failures if at.now - time <= limits.restart_window_s]
    if len(recent) > limits.max_restarts:
        return Decision(
            Action.FAIL,
            reason=f"{len(recent)} failures within {limits.restart_window_s:g} s, and cluster.max_restarts is "
            f"{limits.max_restarts}",
        )
    possible = at.alive + at.room
    if possible >= at.wanted:
        return Decision(Action.GO_ON, at.wanted)
    if at.failures and at.now - at.failures[-1] < max(limits.rejoin_s, SETTLE_S):
        return Decision(Action.WAIT)
    fewer = [size for size in limits.sizes if size <= possible]
    if fewer:
        return Decision(Action.GO_ON, max(fewer))
    return Decision(
        Action.FAIL,
        reason=f"after {limits.rejoin_s:g} s there is room for {possible} of the {min(limits.sizes)} workers that the "
        "run needs",
    )

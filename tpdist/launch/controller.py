"""A run on many workers, from the driver's side: a state machine.

    CONNECTED ⇄ PLACING → JOINING → TRAINING → FINISHED
                   ↑ ↑                 │ │
                   │ └── RECOVERING ←──┘ │ a worker is lost
                   └─────────────────────┘ the cluster has room for more, and an epoch has ended

back to CONNECTED where another run took the room before the first generation had it. A state has one method, which does
its work and returns the next state; what it raises ends the run. The survivors of a failure keep their process:
they leave the old group, and join the next generation beside those that are new.
"""

import enum
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from tpdist.config import Cluster
from tpdist.errors import Interrupted, TpdistError
from tpdist.launch.cluster import ClusterError, free_nodes, open_meeting, wait_for_room
from tpdist.launch.crew import Change, Crew, WorkerFailedError
from tpdist.launch.hosted import Hosted
from tpdist.launch.messages import Job, Rendezvous
from tpdist.launch.placement import Node, assign, room
from tpdist.launch.policy import Action, Limits, Situation, decide
from tpdist.training.depots import has_checkpoints
from tpdist.training.progress import Reporter
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import StopSignal

GROW_EVERY_S = 5.0


class State(enum.Enum):
    CONNECTED = enum.auto()
    PLACING = enum.auto()
    JOINING = enum.auto()
    TRAINING = enum.auto()
    RECOVERING = enum.auto()
    FINISHED = enum.auto()


@dataclass
class Controller:
    """Places, joins and watches the workers of one run, and mends it; `run` returns the leader's result.

    sizes: numbers of workers that the run may have, in rising order. wanted: how many there shall be.
    failures: when workers were found lost. unfit: ids of nodes on which a worker could not begin.
    """

    job: Job
    cluster: Cluster
    sizes: tuple[int, ...]
    reporter: Reporter
    stop: StopSignal
    state: State = State.CONNECTED
    wanted: int = 0
    generation: int = 0
    failures: list[float] = field(default_factory=list)
    unfit: set[str] = field(default_factory=set)
    change: Change | None = None

    def __post_init__(self) -> None:
        cluster = self.cluster
        self.crew = Crew(self.reporter, cluster.heartbeat_s)
        self._limits = Limits(self.sizes, cluster.max_restarts, cluster.restart_window_s, cluster.rejoin_s)

    def run(self) -> dict[str, Any]:
        """Through the states to FINISHED. Raises what failed, the worker's own error first."""
        steps: dict[State, Callable[[], State]] = {
            State.CONNECTED: self._connect,
            State.PLACING: self._place,
            State.JOINING: self._join,
            State.TRAINING: self._train,
            State.RECOVERING: self._recover,
        }
        try:
            while self.state is not State.FINISHED:
                self.state = steps[self.state]()
            return self._result
        finally:
            self.crew.keep(0)

    def _connect(self) -> State:
        """As many workers as fit now, once that is enough; the meeting of the first generation."""
        self.wanted = wait_for_room(
            self.sizes, *self._needs, self.reporter, self.cluster.wait_s, self._leave_if_stopped
        )
        self._grown = time.monotonic()
        self._at = ray.util.get_node_ip_address()
        self._meeting = open_meeting(self._at)
        return State.PLACING

    def _place(self) -> State:
        """Actors for the workers that are missing, as the policy decides."""
        while True:
            self._note_lost()
            nodes = self._nodes(answering=self.generation > 0)
            now, space = time.monotonic(), room(nodes, *self._needs)
            decision = decide(Situation(self.failures, now, self.wanted, len(self.crew), space), self._limits)
            if decision.action is Action.WAIT:
                self._leave_if_stopped()
                self.crew.look()
                continue
            if decision.action is Action.FAIL:
                if not self.generation and not self.failures:  # the room was there a moment ago
                    return State.CONNECTED
                raise self._given_up(decision.reason)
            self.crew.keep(decision.workers)
            missing = decision.workers - len(self.crew)
            self.crew.add([Hosted.on(node, self.cluster) for node in assign(nodes, missing, *self._needs)])
            if not self.crew.start(self._needs, self._leave_if_stopped):
                if self.generation:
                    continue
                self.crew.keep(0)  # what it holds may be what the other waits for
                return State.CONNECTED
            if all(one.fault is None for one in self.crew.hosted):
                self.wanted = len(self.crew)
                return State.JOINING

    def _note_lost(self) -> None:
        """Let go of workers that were lost while nobody trained. Raises where a cluster never had any that start."""
        unfit = {one.node.id for one in self.crew.hosted if one.unfit} - self.unfit
        known = any(one.fault is not None and one.node.id not in unfit for one in self.crew.hosted)
        lost = self.crew.drop_lost()
        if unfit and not self.generation:
            raise ClusterError(f"{lost[0]}; its log is among Ray's, see `ray list actors --detail`")
        self.unfit |= unfit
        if lost:
            self.change = self.change or Change([], time.monotonic())
            self.change.lost += lost
        if known:  # a node that is found unfit is passed over from here on, and is no failure of the run's
            self.failures.append(time.monotonic())

    def _nodes(self, answering: bool) -> list[Node]:
        """Live nodes with what they have free; those found unfit only where the run cannot be without them."""
        nodes = free_nodes(answering)
        fit = [node for node in nodes if node.id not in self.unfit]
        enough = len(self.crew) + room(fit, *self._needs) >= self.sizes[0]
        return fit if enough else nodes

    def _join(self) -> State:
        """A new generation: all workers meet and train."""
        self.generation += 1
        self.crew.train(self.job, Rendezvous(self._at, self._meeting.port, self.generation, self.crew.processes))
        self._regrouping = False
        return State.TRAINING

    def _train(self) -> State:
        """Watch until all have ended; pass on what they say, and the user's wish to stop."""
        while True:
            self.crew.look()
            if (result := self.crew.result) is not None:
                self._tell_change(ended=True)
                self.crew.hear_out_all()
                self._result = result
                return State.FINISHED
            if any(one.own for one in self.crew.hosted):
                self._call_back()
                self.crew.hear_out()
                raise self._own_error() or WorkerFailedError("the workers stopped, and nobody had asked them to")
            if any(one.broken for one in self.crew.hosted):
                return State.RECOVERING
            if self.crew.waits_to_regroup:
                self._tell_change(ended=True)
                self.crew.hear_out()
                self.change = Change([], time.monotonic())
                return State.PLACING
            self._tell_change()
            if self.stop.received:
                self.crew.tell_to_stop(self.generation)
            elif not self._regrouping:
                self._grow()

    def _recover(self) -> State:
        """Call the survivors back, let go of what is lost. Raises the user's own error, if it was one."""
        self.change = self.change or Change([], time.monotonic())
        self._call_back()
        own = self._own_error()
        if own is not None:
            self.crew.hear_out()
            raise own
        self.crew.give_up_the_stuck()
        if self.crew.leader.fault is None:
            self.crew.hear_out()
        self.unfit |= {one.node.id for one in self.crew.hosted if one.unfit}
        self.change.lost += self.crew.drop_lost() or ["a connection between workers broke"]
        self.failures.append(time.monotonic())
        self.job = replace(self.job, recoveries=self.job.recoveries + 1)
        return State.PLACING

    def _call_back(self) -> None:
        """Have all come back from `train`.

        Who still waits at the meeting for one that will not come hears that it is closed; the next generation has a
        new one.
        """
        self._meeting = open_meeting(self._at)
        self.crew.call_back(self.generation)

    def _own_error(self) -> Exception | None:
        return self.crew.own_error(self.stop.received, f"{self.job.run}/logs")

    def _given_up(self, reason: str) -> WorkerFailedError:
        lost = "; ".join(self.change.lost) if self.change else "the workers have no room any more"
        logs = f"{self.job.run}/logs"
        return WorkerFailedError(f"{lost}. Not mended: {reason}. The logs are in {logs}. {self.how_to_go_on()}")

    def _grow(self) -> None:
        """Where the cluster has room for more workers, ask for a new group at the end of the epoch."""
        now = time.monotonic()
        if len(self.crew) == self.sizes[-1] or now - self._grown < GROW_EVERY_S:
            return
        self._grown = now
        possible = len(self.crew) + room(self._nodes(answering=True), *self._needs)
        larger = [size for size in self.sizes if len(self.crew) < size <= possible]
        if larger:
            self.wanted, self._regrouping = larger[-1], True
            self.crew.tell_to_regroup(self.generation)

    def _tell_change(self, ended: bool = False) -> None:
        """One line on what was mended, or on how the run has grown, once the workers train again."""
        if self.change is not None:
            step = self.crew.went_on_from(ended)
            if step is not None or ended:
                self.reporter.say(self.change.text(self.crew, step))
                self.change = None

    def _leave_if_stopped(self) -> None:
        if self.stop.received:
            raise Interrupted(f"stopped while workers were placed. {self.how_to_go_on()}")

    def how_to_go_on(self) -> str:
        """What to tell the user of a run that has ended before its end."""
        run, saved = RunDirectory(Path(self.job.run), self.job.address), True
        with suppress(TpdistError):  # where its file system has gone from here
            saved = has_checkpoints(run.load_config(self.job.overrides), run)
        return f"Continue with: {run.resume_command}" if saved else "There is no checkpoint yet: start the run again"

    @property
    def _needs(self) -> tuple[float, float]:
        """CPUs and GPUs of a worker."""
        return self.cluster.cpus_per_worker, self.cluster.gpus_per_worker

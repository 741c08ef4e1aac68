"""A run on many workers, from the driver's side: a state machine.

    CONNECTED → PLACING → JOINING → TRAINING → FINISHED
                   ↑ ↑                 │ │
                   │ └── RECOVERING ←──┘ │ a worker is lost
                   └─────────────────────┘ the cluster has room for more, and an epoch has ended

and from every state to FAILED. A state has one method, which does its work and returns the next state. The survivors of
a failure keep their process: they leave the old group, and join the next generation beside those that are new.
"""

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from tpdist.config import Cluster
from tpdist.errors import Interrupted, TpdistError
from tpdist.launch.actor import Job, Rendezvous
from tpdist.launch.cluster import ClusterError, free_nodes, open_store, wait_for_room
from tpdist.launch.hosted import WORDS_LIMIT_S, Hosted
from tpdist.launch.placement import Node, assign, room
from tpdist.launch.policy import Action, Decision, Limits, Situation, decide
from tpdist.training.depots import has_checkpoints
from tpdist.training.progress import Reporter, Status, together
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import StopSignal

LOOK_EVERY_S = 0.25
LONGEST_LOOK_S = 1.0
GROW_EVERY_S = 5.0
START_LIMIT_S = 120.0
# survivors that take longer to come back hang in a message, and are replaced too
RETURN_LIMIT_S = 10.0


class State(enum.Enum):
    CONNECTED = enum.auto()
    PLACING = enum.auto()
    JOINING = enum.auto()
    TRAINING = enum.auto()
    RECOVERING = enum.auto()
    FINISHED = enum.auto()
    FAILED = enum.auto()


class WorkerFailedError(TpdistError):
    """A worker's own error, or more failures than are mended; the message says which."""

    exit_code = 1


@dataclass
class Controller:
    """Places, joins and watches the workers of one run, and mends it; `run` returns the leader's result.

    sizes: numbers of workers that the run may have, in rising order. hosted: the workers, in the order of the ranks.
    wanted: how many there shall be. failures: when workers were found lost. began: an update has been taken. unfit: ids
    of nodes on which a worker could not start.
    """

    job: Job
    cluster: Cluster
    sizes: tuple[int, ...]
    reporter: Reporter
    stop: StopSignal
    state: State = State.CONNECTED
    hosted: list[Hosted] = field(default_factory=list)
    wanted: int = 0
    generation: int = 0
    began: bool = False
    failures: list[float] = field(default_factory=list)
    unfit: set[str] = field(default_factory=set)
    change: "Change | None" = None
    error: Exception | None = None

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
            while self.state in steps:
                try:
                    self.state = steps[self.state]()
                except Exception as error:
                    self.error, self.state = error, State.FAILED
            if self.error is not None:
                raise self.error
            return self._result
        finally:
            for one in self.hosted:
                one.release()

    def _connect(self) -> State:
        """As many workers as fit now, once that is enough; the store where the first generation meets."""
        self.wanted = wait_for_room(
            self.sizes, *self._needs, self.reporter, self.cluster.wait_s, self._leave_if_stopped
        )
        self._looked = self._grown = time.monotonic()
        self._at = ray.util.get_node_ip_address()
        self._store = open_store(self._at)
        return State.PLACING

    def _place(self) -> State:
        """Actors for the workers that are missing, as the policy decides."""
        while True:
            self._note_lost()
            nodes = self._nodes(answering=self.generation > 0)
            decision = self._decide(room(nodes, *self._needs))
            if decision.action is Action.WAIT:
                self._leave_if_stopped()
                self._look()
                continue
            if decision.action is Action.FAIL:
                raise self._given_up(decision.reason)
            for surplus in self.hosted[decision.workers :]:
                surplus.release()
            self.hosted = self.hosted[: decision.workers]
            missing = decision.workers - len(self.hosted)
            new = [Hosted.on(node, self.cluster) for node in assign(nodes, missing, *self._needs)] if missing else []
            self.hosted = sorted(self.hosted + new, key=lambda one: (one.node.address, one.node.id))
            self._start(new)
            if all(one.fault is None for one in self.hosted):
                self.wanted = len(self.hosted)
                return State.JOINING

    def _note_lost(self) -> None:
        """Let go of workers that were lost while nobody trained. Raises where a cluster never had any that start."""
        unfit = {one.node.id for one in self.hosted if one.unfit} - self.unfit
        known = any(one.fault is not None and one.node.id not in unfit for one in self.hosted)
        lost = self._drop_lost()
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
        enough = len(self.hosted) + room(fit, *self._needs) >= self.sizes[0]
        return fit if enough else nodes

    def _start(self, new: list[Hosted]) -> None:
        """Until the actors run; those that do not within the limit are lost."""
        deadline = time.monotonic() + START_LIMIT_S
        while waiting := [one for one in new if one.place is None and one.fault is None]:
            self._leave_if_stopped()
            self._look([one.placing for one in waiting])
            for one in waiting:
                one.has_started(time.monotonic() > deadline)

    def _join(self) -> State:
        """A new generation: all workers meet at the store and train."""
        self.generation += 1
        places = tuple(one.place for one in self.hosted if one.place is not None)
        rendezvous = Rendezvous(self._at, self._store.port, self.generation, places)
        for rank, one in enumerate(self.hosted):
            one.train(self.job, rank, rendezvous)
        self._regrouping = False
        return State.TRAINING

    def _train(self) -> State:
        """Watch until all have ended; pass on what they say, and the user's wish to stop."""
        while True:
            self._look()
            leader = self.hosted[0].ended
            if leader is not None and leader.result is not None:
                return self._finish(leader.result)
            if any(one.own for one in self.hosted):
                self._call_back()
                self._hear_out()
                raise self._own_error() or WorkerFailedError("the workers stopped, and nobody had asked them to")
            if any(one.broken for one in self.hosted):
                return State.RECOVERING
            if all(one.ended and one.ended.regroup for one in self.hosted):
                self.change = Change([], time.monotonic())
                return State.PLACING
            self._tell_change()
            if self.stop.received:
                self._tell_to_stop()
            elif not self._regrouping:
                self._grow()

    def _recover(self) -> State:
        """Call the survivors back, let go of what is lost. Raises the user's own error, if it was one."""
        self.change = self.change or Change([], time.monotonic())
        self._call_back()
        own = self._own_error()
        if own is not None:
            self._hear_out()
            raise own
        for one in self.hosted:
            if one.working:
                one.fault = f"hung for {RETURN_LIMIT_S:.0f} s"
        self.change.lost += self._drop_lost() or ["a connection between workers broke"]
        self.failures.append(time.monotonic())
        self.job = replace(self.job, recoveries=self.job.recoveries + 1)
        return State.PLACING

    def _finish(self, result: dict[str, Any]) -> State:
        self._tell_change(ended=True)
        for one in self.hosted[1:]:
            one.last_words()  # their figures, of a run that was too short for a look as well
        self._hear_out()
        self._result = result
        return State.FINISHED

    def _look(self, placing: Sequence[ray.ObjectRef] = ()) -> None:
        """A moment's wait for one that starts or comes back; then what the workers answer, and how they ended."""
        references = [*placing, *(one.running for one in self.hosted if one.working and one.running)]
        if references:
            ray.wait(references, num_returns=1, timeout=LOOK_EVERY_S)
        else:
            time.sleep(LOOK_EVERY_S)
        now = time.monotonic()
        # if it was this process that stood still, nobody was silent
        passed, self._looked = min(now - self._looked, LONGEST_LOOK_S), now
        answers = [one.hear(passed, self.cluster.heartbeat_s) for one in self.hosted]
        for one in self.hosted:
            one.settle()
            if one.fault is not None:
                one.release()  # at once: others may wait for its message
        self._show(answers)

    def _show(self, answers: list[tuple[Status | None, list[str]] | None]) -> None:
        """What the leader said; the figures of all, as far as they have told them."""
        self.began = self.began or any(one.status is not None for one in self.hosted)
        for _, said in [answer for answer in answers[:1] if answer]:
            status = together([one.status for one in self.hosted])
            if status is not None:
                self.reporter.step(status)  # before what comes with it: what is said last is then read last
            for line in said:
                self.reporter.say(line)

    def _call_back(self) -> None:
        """Have all come back from `train`, for as long as one that is not stuck may take.

        Who still waits at the store for one that will not come hears that the store is closed; the next generation
        meets at a new one.
        """
        self._store = open_store(self._at)
        deadline = time.monotonic() + RETURN_LIMIT_S
        self._tell_to_stop()
        while time.monotonic() < deadline and any(one.working for one in self.hosted):
            self._look()

    def _hear_out(self) -> None:
        answers = self.hosted[0].last_words()
        self._show([(status, [line for _, said in answers for line in said]) for status, _ in answers[-1:]])

    def _tell_to_stop(self) -> None:
        for one in self.hosted:
            if one.working:
                one.actor.stop.remote(self.generation)

    def _own_error(self) -> Exception | None:
        """The error of the user's own that ended the workers: one that tpdist explains before any other."""
        causes = [(one.own.cause, one.own) for one in self.hosted if one.own]
        for cause, _ in causes:
            asked = self.stop.received or not isinstance(cause, Interrupted)
            if isinstance(cause, TpdistError) and asked:
                return cause
        for cause, error in causes:
            if not isinstance(cause, TpdistError):
                return WorkerFailedError(f"a worker failed; its log is in {self.job.run}/logs\n{error}")
        return None

    def _drop_lost(self) -> list[str]:
        """Let go of workers with a fault; what happened to each."""
        lost = [f"worker {rank} ({one}) {one.fault}" for rank, one in enumerate(self.hosted) if one.fault is not None]
        for one in self.hosted:
            if one.fault is not None:
                one.release()
        self.hosted = [one for one in self.hosted if one.fault is None]
        return lost

    def _decide(self, room: int) -> Decision:
        cluster = self.cluster
        limits = Limits(self.sizes, cluster.max_restarts, cluster.restart_window_s, cluster.rejoin_s)
        return decide(Situation(self.failures, time.monotonic(), self.wanted, len(self.hosted), room), limits)

    def _given_up(self, reason: str) -> WorkerFailedError:
        lost = "; ".join(self.change.lost) if self.change else "the workers have no room any more"
        return WorkerFailedError(
            f"{lost}. Not mended: {reason}. The logs are in {self.job.run}/logs. {self._how_to_go_on()}"
        )

    def _grow(self) -> None:
        """Where the cluster has room for more workers, ask for a new group at the end of the epoch."""
        now = time.monotonic()
        if len(self.hosted) == self.sizes[-1] or now - self._grown < GROW_EVERY_S:
            return
        self._grown = now
        possible = len(self.hosted) + room(self._nodes(answering=True), *self._needs)
        larger = [size for size in self.sizes if len(self.hosted) < size <= possible]
        if larger:
            self.wanted, self._regrouping = larger[-1], True
            for one in self.hosted:
                one.actor.regroup.remote(self.generation)

    def _tell_change(self, ended: bool = False) -> None:
        """One line on what was mended, or on how the run has grown, once the workers train again."""
        if self.change is None:
            return
        step = self.hosted[0].went_on_from(WORDS_LIMIT_S if ended else 0.0)
        if step is not None or ended:
            self.reporter.say(
                self.change.text(len(self.hosted), sum(one.generations == 1 for one in self.hosted), step)
            )
            self.change = None

    def _leave_if_stopped(self) -> None:
        if self.stop.received:
            raise Interrupted(f"stopped while workers were placed. {self._how_to_go_on()}")

    def _how_to_go_on(self) -> str:
        run = RunDirectory(Path(self.job.run))
        if not has_checkpoints(run.load_config(self.job.overrides), run):
            return "Nothing was saved yet: start the run again"
        return f"Continue with: {run.resume_command}"

    @property
    def _needs(self) -> tuple[float, float]:
        """CPUs and GPUs of a worker."""
        return self.cluster.cpus_per_worker, self.cluster.gpus_per_worker


@dataclass
class Change:
    """What happened between two generations. lost: what was lost, none where the run grew."""

    lost: list[str]
    since: float

    def text(self, workers: int, new: int, step: int | None) -> str:
        """One line. new: of the workers. step: the one from which they went on, if they had any left to take."""
        seconds = time.monotonic() - self.since
        what = "; ".join(self.lost) if self.lost else "the cluster has room for more"
        on = "went on" if step is None else f"went on from step {step}"
        who = f"{workers} worker{'s' if workers > 1 else ''}"
        return f"{what}: {new} new, {workers - new} kept, {who} {on} after {seconds:.1f} s"

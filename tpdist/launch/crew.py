"""The workers of one run, seen together: how they start, what they say, how they end, who is lost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from tpdist.errors import Interrupted, TpdistError
from tpdist.launch.cluster import free_nodes
from tpdist.launch.hosted import WORDS_LIMIT_S, Hosted
from tpdist.launch.messages import Job, Process, Rendezvous
from tpdist.launch.policy import SETTLE_S
from tpdist.training.progress import Reporter, together

LOOK_EVERY_S = 0.25
LONGEST_LOOK_S = 1.0
START_LIMIT_S = 120.0
# survivors that take longer to come back hang in a message, and are replaced too
RETURN_LIMIT_S = 10.0


class WorkerFailedError(TpdistError):
    """A worker's own error, or more failures than are mended; the message says which."""

    exit_code = 1


@dataclass
class Crew:
    """hosted: the workers, in the order of the ranks. heartbeat_s: one that is silent for so long is lost. began: an
    update has been taken.
    """

    reporter: Reporter
    heartbeat_s: float
    hosted: list[Hosted] = field(default_factory=list)
    began: bool = False
    _looked: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return len(self.hosted)

    @property
    def leader(self) -> Hosted:
        return self.hosted[0]

    @property
    def processes(self) -> tuple[Process, ...]:
        return tuple(one.process for one in self.hosted if one.process is not None)

    @property
    def result(self) -> dict[str, Any] | None:
        """The leader's, once the run is finished."""
        ended = self.leader.ended
        return None if ended is None else ended.result

    @property
    def waits_to_regroup(self) -> bool:
        """All have come back at an epoch's end, as they were asked to."""
        return all(one.ended and one.ended.regroup for one in self.hosted)

    def keep(self, count: int) -> None:
        """End those beyond the first `count`."""
        self.let_go(self.hosted[count:])

    def let_go(self, some: Sequence[Hosted]) -> None:
        """End them; the others are the crew."""
        for one in some:
            one.release()
        self.hosted = [one for one in self.hosted if one not in some]

    def add(self, new: Sequence[Hosted]) -> None:
        """Ranks follow the nodes, so that neighbours in time are near each other."""
        self.hosted = sorted([*self.hosted, *new], key=lambda one: (one.node.address, one.node.id))

    def start(self, needs: tuple[float, float], leave_if_stopped: Callable[[], None]) -> bool:
        """Until the new actors run; those that do not within the limit are lost. needs: CPUs and GPUs of each.

        -> False where the room of some was taken before they had it: those are let go, and it is nobody's failure.
        """
        began = time.monotonic()
        while starting := [one for one in self.hosted if one.process is None and one.fault is None]:
            leave_if_stopped()
            self.look([one.placing for one in starting])
            passed = time.monotonic() - began
            for one in starting:
                one.has_started(passed > START_LIMIT_S)
            if passed > SETTLE_S and (roomless := self._roomless(needs)):
                self.let_go(roomless)
                return False
        return True

    def _roomless(self, needs: tuple[float, float]) -> list[Hosted]:
        """Workers that Ray has not placed, on nodes that have no room left."""
        places = {node.id: node.room(*needs) for node in free_nodes()}
        starting = [one for one in self.hosted if one.process is None and one.fault is None]
        return [one for one in starting if not places.get(one.node.id) and not one.placed]

    def train(self, job: Job, rendezvous: Rendezvous) -> None:
        """Begin a generation."""
        others = any(one.generations for one in self.hosted)
        for rank, one in enumerate(self.hosted):
            one.train(job, rank, rendezvous, late=others and not one.generations)

    def look(self, placing: Sequence[ray.ObjectRef] = ()) -> None:
        """A moment's wait for one that starts or comes back; then what the workers answer, and how they ended."""
        references = [*placing, *(one.running for one in self.hosted if one.working and one.running)]
        if references:
            ray.wait(references, num_returns=1, timeout=LOOK_EVERY_S)
        else:
            time.sleep(LOOK_EVERY_S)
        now = time.monotonic()
        # if it was this process that stood still, nobody was silent
        passed, self._looked = min(now - self._looked, LONGEST_LOOK_S), now
        said = [one.hear(passed, self.heartbeat_s) for one in self.hosted]
        for one in self.hosted:
            one.settle()
            if one.fault is not None:
                one.release()  # at once: others may wait for its message
        self._show(said[0] if said else None)

    def _show(self, said: Sequence[str] | None) -> None:
        """What the leader said, if it has answered; the figures of all, as far as they have told them."""
        self.began = self.began or any(one.status is not None for one in self.hosted)
        if said is None:
            return
        status = together([one.status for one in self.hosted])
        if status is not None:
            self.reporter.step(status)  # before what comes with it: what is said last is then read last
        for line in said:
            self.reporter.say(line)

    def hear_out(self) -> None:
        """The leader's last words."""
        self._show(self.leader.last_words())

    def hear_out_all(self) -> None:
        """The figures of all, of a run that was too short for a look as well."""
        for one in self.hosted[1:]:
            one.last_words()
        self.hear_out()

    def went_on_from(self, ended: bool) -> int | None:
        """The step before this generation's first update; None until then. ended: it will not be asked again."""
        return self.leader.went_on_from(WORDS_LIMIT_S if ended else 0.0)

    def tell_to_stop(self, generation: int) -> None:
        for one in self.hosted:
            if one.working:
                one.actor.stop.remote(generation)

    def tell_to_regroup(self, generation: int) -> None:
        for one in self.hosted:
            one.actor.regroup.remote(generation)

    def call_back(self, generation: int) -> None:
        """Have all come back from `train`, for as long as one that is not stuck may take."""
        deadline = time.monotonic() + RETURN_LIMIT_S
        self.tell_to_stop(generation)
        while time.monotonic() < deadline and any(one.working for one in self.hosted):
            self.look()

    def own_error(self, asked_to_stop: bool, logs: str) -> Exception | None:
        """The error of the user's own that ended the workers: one that tpdist explains before any other."""
        causes = [(one.own.cause, one.own) for one in self.hosted if one.own]
        for cause, _ in causes:
            if isinstance(cause, TpdistError) and (asked_to_stop or not isinstance(cause, Interrupted)):
                return cause
        for cause, error in causes:
            if not isinstance(cause, TpdistError):
                return WorkerFailedError(f"a worker failed; its log is in {logs}\n{error}")
        return None

    def give_up_the_stuck(self) -> None:
        """Who has not come back when called is lost."""
        for one in self.hosted:
            if one.working:
                one.fault = f"hung for {RETURN_LIMIT_S:.0f} s"

    def drop_lost(self) -> list[str]:
        """Let go of workers with a fault; what happened to each."""
        lost = [f"worker {rank} ({one}) {one.fault}" for rank, one in enumerate(self.hosted) if one.fault is not None]
        self.let_go([one for one in self.hosted if one.fault is not None])
        return lost


@dataclass
class Change:
    """What happened between two generations. lost: what was lost, none where the run grew."""

    lost: list[str]
    since: float

    def text(self, crew: Crew, step: int | None) -> str:
        """One line. step: the one from which the crew went on, if it had any left to take."""
        workers, new = len(crew), sum(one.generations == 1 for one in crew.hosted)
        seconds = time.monotonic() - self.since
        room = "the cluster has room for more" if new else "the room for more was taken"
        what = "; ".join(self.lost) if self.lost else room
        on = "went on" if step is None else f"went on from step {step}"
        who = f"{workers} worker{'s' if workers > 1 else ''}"
        return f"{what}: {new} new, {workers - new} kept, {who} {on} after {seconds:.1f} s"

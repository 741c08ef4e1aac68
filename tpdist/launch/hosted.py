"""One worker as the controller sees it: its actor, its heartbeat, how its work ended."""

import re
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tpdist.config import Cluster
from tpdist.errors import Interrupted, first_line
from tpdist.launch.actor import SpanActor
from tpdist.launch.messages import Ended, Job, Process, Rendezvous
from tpdist.launch.placement import Node
from tpdist.training.progress import Status

WORDS_LIMIT_S = 5.0


@dataclass(eq=False)
class Hosted:
    """process: once the actor runs. running: its `train`; ended: how that came back. own: the error of the user's own
    that it raised. status: the latest. fault: why it must be replaced. unfit: another on its node would not
    do either. silent_s: how long it has given no sign. generations: how many it has trained in.
    """

    actor: ActorHandle
    group: PlacementGroup
    node: Node
    placing: ray.ObjectRef
    process: Process | None = None
    running: ray.ObjectRef | None = None
    ended: Ended | None = None
    own: RayTaskError | None = None
    status: Status | None = None
    fault: str | None = None
    unfit: bool = False
    silent_s: float = 0.0
    generations: int = 0
    _asked: ray.ObjectRef | None = None
    _step: ray.ObjectRef | None = None
    _late: bool = False
    _released: bool = False

    @classmethod
    def on(cls, node: Node, cluster: Cluster) -> "Hosted":
        """An actor on `node`, in a placement group of its own: to remove the group is to end the actor."""
        bundle = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        group = placement_group([bundle], bundle_label_selector=[{"ray.io/node-id": node.id}])
        actor = SpanActor.options(  # type: ignore[attr-defined]
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        ).remote(cluster.heartbeat_s)
        return cls(actor, group, node, actor.process.remote())

    def __str__(self) -> str:
        process = f", process {self.process.id}" if self.process else ""
        return f"{self.node.address}{process}"

    @property
    def working(self) -> bool:
        """`train` has been called and has not come back."""
        return self.running is not None and not (self.ended or self.own or self.fault)

    @property
    def broken(self) -> bool:
        """The group cannot go on: this worker is lost, or it lost another. One that was done is no loss."""
        if self.ended is None:
            return self.fault is not None
        return self.ended.lost is not None or self.ended.failed is not None

    def train(self, job: Job, rank: int, rendezvous: Rendezvous, late: bool) -> None:
        """Begin a generation. late: its first, where others have trained."""
        self.ended = self.own = self.status = self._step = None
        self.generations += 1
        self._late = late
        self.running = self.actor.train.remote(job, rank, rendezvous)

    @property
    def placed(self) -> bool:
        """It has its room. Until then another may take it, whose turn comes first."""
        return placement_group_table(self.group)["state"] == "CREATED"

    def has_started(self, too_late: bool) -> None:
        """Take in whether the actor runs. too_late: or else it is lost.

        Where no process was killed, the next one would not start either: such a worker is unfit.
        """
        try:
            self.process = ray.get(self.placing, timeout=0)
        except GetTimeoutError:
            if too_late:
                self.fault, self.unfit = "did not start; look at `ray status`", True
        except RayError as error:
            self.fault = f"did not start: {str(error).strip().splitlines()[-1]}"
            self.unfit = isinstance(error, RuntimeEnvSetupError) or "creation task" in str(error)

    def hear(self, passed_s: float, limit_s: float) -> list[str] | None:
        """What it said, if the answer to the last question has come; then asks again. passed_s: since the last call."""
        if self._asked is None:
            self._asked = self.actor.status.remote()
        try:
            status, said = ray.get(self._asked, timeout=0)
        except GetTimeoutError:
            self.silent_s += passed_s if self.process else 0.0  # an actor that starts may take its time
            if self.silent_s > limit_s:
                self.fault = self.fault or f"gave no sign for {limit_s:g} s"
            return None
        except RayError as error:
            self.fault = self.fault or why_it_died(error)
            return None
        self._asked, self.silent_s, self.status = None, 0.0, status
        return said

    def last_words(self) -> list[str] | None:
        """What it has to say after `train` has come back; None where it does not answer."""
        try:
            asked = [self._asked, self.actor.status.remote()]
            answers = ray.get([one for one in asked if one is not None], timeout=WORDS_LIMIT_S)
            self.status = answers[-1][0]
            return [line for _, said in answers for line in said]
        except (GetTimeoutError, RayError):
            return None
        finally:
            self._asked = None

    def settle(self) -> None:
        """Take in how `train` came back, if it has."""
        if self.running is None or not self.working:
            return
        try:
            self.ended = ray.get(self.running, timeout=0)
        except GetTimeoutError:
            return
        except RayTaskError as error:
            if self._late and self.status is None and not isinstance(error.cause, Interrupted):
                # its node's: a package that is missing there, say, for others have trained with the same settings
                self.fault, self.unfit = f"failed: {type(error.cause).__name__}: {first_line(error.cause)}", True
            else:
                self.own = error
        except RayError as error:
            self.fault = self.fault or why_it_died(error)
        if self.ended is not None and self.ended.failed is not None:
            self.fault, self.unfit = f"failed: {self.ended.failed}", self.ended.unfit

    def went_on_from(self, limit_s: float = 0.0) -> int | None:
        """The step before this generation's first update, once there was one. limit_s: for an answer as of now."""
        if self._step is None or limit_s:
            self._step = self.actor.went_on_from.remote()
        try:
            step = ray.get(self._step, timeout=limit_s)
        except (GetTimeoutError, RayError):
            return None
        self._step = None
        return step

    def release(self) -> None:
        """End the process, however deaf it is, and give its resources back. A second call does nothing."""
        if not self._released:
            ray.kill(self.actor)
            remove_placement_group(self.group)
        self._released = True


def why_it_died(error: RayError) -> str:
    """In a few words."""
    if isinstance(error, ActorUnavailableError):
        return "cannot be reached"
    if isinstance(error, OutOfMemoryError):
        return "was ended by Ray, for its node was running out of memory"
    if re.search(r"node (was|is|has)? ?(dead|died|terminated|preempted)", str(error)):
        return "was lost with its node"
    return "died"

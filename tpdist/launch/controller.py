"""A run on many workers, from the driver's side: a state machine.

    CONNECTED → PLACING → JOINING → TRAINING → FINISHED
                    ↘         ↘          ↘
                                FAILED

Every state has one method, which does its work and returns the next state.
"""

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tpdist.config import Cluster
from tpdist.errors import TpdistError
from tpdist.launch.actor import Job, Place, Rendezvous, SpanActor
from tpdist.launch.cluster import ClusterError, open_store, place
from tpdist.launch.placement import Node
from tpdist.training.progress import Reporter, together
from tpdist.training.signals import StopSignal

LOOK_EVERY_S = 0.25
START_LIMIT_S = 120.0


class State(enum.Enum):
    CONNECTED = enum.auto()
    PLACING = enum.auto()
    JOINING = enum.auto()
    TRAINING = enum.auto()
    FINISHED = enum.auto()
    FAILED = enum.auto()


class WorkerFailedError(TpdistError):
    """A worker ended by itself; the message is its own error."""

    exit_code = 1


@dataclass
class Hosted:
    """One worker's actor and the placement group that holds its resources."""

    rank: int
    actor: ActorHandle
    group: PlacementGroup


@dataclass
class Controller:
    """Places, joins and watches the workers of one run; `run` returns the leader's result."""

    job: Job
    cluster: Cluster
    reporter: Reporter
    stop: StopSignal
    state: State = State.CONNECTED
    hosted: list[Hosted] = field(default_factory=list)
    generation: int = 0
    error: Exception | None = None

    def run(self) -> dict[str, Any]:
        """Through the states to FINISHED. Raises what failed, the worker's own error first."""
        steps: dict[State, Callable[[], State]] = {
            State.CONNECTED: lambda: State.PLACING,
            State.PLACING: self._place,
            State.JOINING: self._join,
            State.TRAINING: self._train,
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
            self._release()

    def _place(self) -> State:
        """A node for every rank, a placement group and an actor on it."""
        cluster = self.cluster
        nodes = place(cluster.workers, cluster.cpus_per_worker, cluster.gpus_per_worker, self.reporter, cluster.wait_s)
        self.hosted = [self._host(rank, node) for rank, node in enumerate(nodes)]
        self._places: list[Place] = self._get([hosted.actor.place.remote() for hosted in self.hosted], START_LIMIT_S)
        return State.JOINING

    def _host(self, rank: int, node: Node) -> Hosted:
        bundle = {"CPU": self.cluster.cpus_per_worker, "GPU": self.cluster.gpus_per_worker}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        group = placement_group([bundle], bundle_label_selector=[{"ray.io/node-id": node.id}])
        strategy = PlacementGroupSchedulingStrategy(group)
        actor = SpanActor.options(  # type: ignore[attr-defined]
            num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), scheduling_strategy=strategy
        ).remote(rank)
        return Hosted(rank, actor, group)

    def _join(self) -> State:
        """A new generation: all workers meet at the controller's store and start."""
        self.generation += 1
        host = ray.util.get_node_ip_address()
        self._store = open_store(host)
        rendezvous = Rendezvous(host, self._store.port, self.generation)
        self._running: list[Any] = [
            hosted.actor.train.remote(self.job, rendezvous, self._places) for hosted in self.hosted
        ]
        return State.TRAINING

    def _train(self) -> State:
        """Watch until all have ended; pass on what they say, and the user's wish to stop."""
        running: list[Any] = list(self._running)
        told = False
        while running:
            ended, running = ray.wait(running, num_returns=len(running), timeout=LOOK_EVERY_S)
            self._show()
            for reference in ended:
                self._check(reference)
            if self.stop.received and not told:
                told = True
                ray.get([hosted.actor.stop.remote() for hosted in self.hosted])
        self._show()
        self._result = cast(dict[str, Any], ray.get(self._running[0]))
        return State.FINISHED

    def _show(self) -> None:
        try:
            statuses = ray.get([hosted.actor.status.remote() for hosted in self.hosted], timeout=5)
        except (RayActorError, GetTimeoutError):
            return  # the wait on `train` tells what happened
        for line in statuses[0][1]:
            self.reporter.say(line)
        status = together([status for status, _ in statuses])
        if status is not None:
            self.reporter.step(status)

    def _check(self, reference: ray.ObjectRef) -> None:
        """Raise a worker's own error, and that of the first worker to fail before its neighbours' broken pipes."""
        try:
            ray.get(reference)
        except RayTaskError as error:
            self._show()
            cause = error.cause
            if isinstance(cause, TpdistError):
                raise cause from None
            time.sleep(LOOK_EVERY_S)
            own = self._first_own_error() or error
            raise WorkerFailedError(f"a worker failed; its log is in {self.job.run}/logs\n{own}") from error
        except RayActorError as error:
            raise WorkerFailedError(
                f"a worker died: {str(error).splitlines()[0]}; its log is in {self.job.run}/logs"
            ) from error

    def _first_own_error(self) -> Exception | None:
        """The error of a worker that did not fail by losing a neighbour, if one has ended so."""
        ended, _ = ray.wait(self._running, num_returns=len(self._running), timeout=1)
        for reference in ended:
            try:
                ray.get(reference)
            except RayTaskError as error:
                if isinstance(error.cause, TpdistError):
                    raise error.cause from None
                if "Connection" not in str(error.cause) and "gloo" not in str(error.cause).lower():
                    return error
            except RayActorError as error:
                return error
        return None

    def _get(self, references: list[ray.ObjectRef], limit_s: float) -> list[Any]:
        try:
            return ray.get(references, timeout=limit_s)
        except GetTimeoutError as error:
            raise ClusterError(f"the workers did not start within {limit_s:.0f} s; look at `ray status`") from error

    def _release(self) -> None:
        for hosted in self.hosted:
            ray.kill(hosted.actor)
            remove_placement_group(hosted.group)
        self.hosted = []

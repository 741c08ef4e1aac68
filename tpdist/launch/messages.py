"""What the controller tells an actor, and what the actor answers."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told. resume: the user continues a run. recoveries: of this one, so far.

    directory: the user's, where the paths in `overrides` begin. address: of the cluster, as the user gave it.
    """

    run: str
    store: str
    overrides: tuple[str, ...]
    directory: str
    resume: bool
    threads: int
    recoveries: int = 0
    address: str | None = None


@dataclass(frozen=True)
class Process:
    """An actor's, and where it runs. gpu: (node, Ray's name of it there), or None."""

    host: str
    id: int
    gpu: tuple[str, str] | None


@dataclass(frozen=True)
class Rendezvous:
    """Where the workers of one generation meet, a TCPStore that the controller keeps; who they are, by rank."""

    host: str
    port: int
    generation: int
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Ended:
    """How `train` came back, if not by the worker's own error.

    result: the leader's, once the run is finished. lost: what the worker heard when another one went. failed: what its
    machine did to it; unfit: and would to another there. regroup: it waits at an epoch's end, as it was asked to.
    """

    result: dict[str, Any] | None = None
    lost: str | None = None
    failed: str | None = None
    unfit: bool = False
    regroup: bool = False

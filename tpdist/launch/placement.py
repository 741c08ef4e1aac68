"""Which worker runs on which node: a pure function of what the cluster has; and the cores of this process."""

import os
from dataclasses import dataclass

from tpdist.errors import TpdistError

TINY = 1e-6


@dataclass(frozen=True)
class Node:
    """What a node has free."""

    id: str
    address: str
    cpus: float
    gpus: float

    def room(self, cpus: float, gpus: float) -> int:
        """Workers that fit, each with so many CPUs and GPUs; a part of a GPU is a part of one, not of two."""
        limits = [_times(self.cpus, cpus)] if cpus > 0 else []
        if 0 < gpus < 1:
            whole = int(self.gpus + TINY)
            limits.append(whole * _times(1.0, gpus) + _times(self.gpus - whole, gpus))
        elif gpus > 0:
            limits.append(_times(self.gpus, gpus))
        return min(limits) if limits else 1_000_000


def own_cores() -> int:
    """CPU cores that this process may use: those of a container or of a job may be fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _times(have: float, need: float) -> int:
    """How often `need` goes into `have`, whatever the rounding."""
    return int(have / need + TINY)


class TooFewResourcesError(TpdistError):
    """The cluster cannot hold the workers."""


def room(nodes: list[Node], cpus: float, gpus: float) -> int:
    """Workers that fit on all nodes together."""
    return sum(node.room(cpus, gpus) for node in nodes)


def assign(nodes: list[Node], workers: int, cpus: float, gpus: float) -> list[Node]:
    """A node for every rank, in the order of the ranks: spread evenly, and neighbours in rank on one node.

    Raises TooFewResourcesError with what there is and what is needed.
    """
    ordered = sorted(nodes, key=lambda node: (node.address, node.id))
    room = [node.room(cpus, gpus) for node in ordered]
    if sum(room) < workers:
        have = ", ".join(f"{node.address} {node.cpus:g} CPUs {node.gpus:g} GPUs" for node in ordered) or "no node"
        raise TooFewResourcesError(
            f"{workers} workers of {cpus:g} CPUs and {gpus:g} GPUs each need {workers * cpus:g} CPUs and "
            f"{workers * gpus:g} GPUs; the cluster has room for {sum(room)} (free: {have}); lower cluster.workers, "
            "cluster.cpus_per_worker or cluster.gpus_per_worker, or add nodes"
        )
    counts = [0] * len(ordered)
    for _ in range(workers):
        emptiest = min((i for i in range(len(ordered)) if counts[i] < room[i]), key=lambda i: (counts[i], i))
        counts[emptiest] += 1
    return [node for node, count in zip(ordered, counts, strict=True) for _ in range(count)]


def choose_backend(gpus: list[tuple[str, str] | None]) -> str:
    """`nccl` where every worker has a GPU of its own, else `gloo`. gpus: (node, its name there) of every worker."""
    own = [gpu for gpu in gpus if gpu is not None]
    return "nccl" if len(own) == len(gpus) == len(set(own)) else "gloo"

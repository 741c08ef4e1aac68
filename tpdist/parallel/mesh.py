"""One worker's view of the mesh: its place, its neighbours in time, the sum over all workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from tpdist.parallel.exchange import TimeNeighbours
from tpdist.parallel.place import Place
from tpdist.parallel.reduce import BucketedSum, Sum
from tpdist.parallel.traffic import Traffic


@dataclass
class Workers:
    """All workers of a run, seen from one of them. `Workers.alone()` is a run on one.

    place: where it stands in the mesh. neighbours: to the left and right in time. add_up: sums tensors over all
    workers, in place. group: all workers, for small figures. The last three are None where no other worker is met.
    """

    place: Place
    traffic: Traffic
    neighbours: TimeNeighbours | None = None
    add_up: Sum | None = None
    group: dist.ProcessGroup | None = None

    @classmethod
    def alone(cls) -> "Workers":
        return cls(Place(), Traffic())

    @classmethod
    def first_of(cls, shape: tuple[int, int]) -> "Workers":
        """As the first worker of the mesh `shape` sees itself before any has met another: for a look at a run."""
        return cls(Place(0, 0, *shape), Traffic())

    @classmethod
    def join(cls, shape: tuple[int, int], device: torch.device, gradient_dtype: str | None = None) -> "Workers":
        """The mesh `shape` = (stream, time) over the default process group; neighbours in time have ranks side by side.

        gradient_dtype: what gradients are sent in, if not their own; a torch dtype's name.
        """
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("stream", "time"))
        in_time = mesh.get_group("time")
        if dist.get_backend(in_time) == "nccl":
            # NCCL's first call in a group wants every rank, and in a short window only some have neighbours to talk to
            dist.all_reduce(torch.zeros(1, device=device), group=in_time)
        stream, time = (mesh.get_local_rank(name) for name in ("stream", "time"))
        traffic = Traffic()
        world = dist.group.WORLD
        assert world is not None
        return cls(
            Place(stream, time, *shape),
            traffic,
            TimeNeighbours(in_time, traffic),
            Sum(world, traffic, getattr(torch, gradient_dtype) if gradient_dtype else None),
            world,
        )

    @property
    def count(self) -> int:
        return self.place.streams * self.place.times

    @property
    def rank(self) -> int:
        """Workers along time have ranks side by side."""
        return self.place.stream * self.place.times + self.place.time

    @property
    def leads(self) -> bool:
        """The one worker that logs and writes what is not sharded."""
        return self.place.stream == self.place.time == 0

    def name(self, rank: int) -> str:
        """A worker, for people."""
        stream, time = divmod(rank, self.place.times)
        return f"worker {rank} (stream {stream}, time {time})"

    def sum(self, values: Tensor) -> Tensor:
        """Small figures added up over all workers, in place."""
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values

    def sum_all(self, tensors: Sequence[Tensor]) -> None:
        """Tensors of any size added up over all workers, in place."""
        if self.add_up is not None:
            self.add_up(tensors)

    def gradient_sum(self, parameters: Sequence[Tensor], embedding: Tensor | None) -> BucketedSum | None:
        """The sum of θ's gradient, sent during the backward pass; arguments as those of `BucketedSum`."""
        return None if self.add_up is None else BucketedSum(parameters, embedding, self.add_up)

    def total_traffic(self) -> Traffic:
        """What all workers sent."""
        everyone = self.gather(self.traffic.figures())
        return Traffic(**{name: sum(one[name] for one in everyone) for name in everyone[0]})

    def any(self, flag: bool) -> bool:
        """Whether any worker says so."""
        return flag if self.group is None else bool(self.sum(self._box(float(flag))) > 0)

    def from_leader(self, value: float) -> float:
        """The leader's number, on every worker."""
        if self.group is None:
            return value
        box = self._box(value)
        dist.broadcast(box, 0, group=self.group)
        return float(box)

    def gather(self, value: Any) -> list[Any]:
        """What every worker has to say, a small JSON value each, in the order of the ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values

    def _box(self, value: float) -> Tensor:
        """Where the group's backend can send from."""
        nccl = self.group is not None and dist.get_backend(self.group) == "nccl"
        return torch.tensor([value], dtype=torch.float64, device="cuda" if nccl else "cpu")

    def wait_for_all(self) -> None:
        if self.group is not None:
            dist.barrier(self.group)

"""What a run knows between two updates, beside θ, H and U."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class EpochSums:
    """Sums over the updates of one epoch so far; a float64 each, so that a resumed run goes on exactly.

    loss: nats. primal, dual: squared norms. seconds: of training alone.
    """

    loss: float = 0.0
    penalty: float = 0.0
    primal: float = 0.0
    dual: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class RunState:
    """epoch: the one being trained, from 1. position: windows of it that are done. step: updates in all.

    best: lowest mean validation loss; best_epoch: its epoch. stale: epochs since then. decay_wait: epochs
    without gain since the learning rate last fell. weight: λ of the epoch before. lr_scale: what the decay has left of
    the learning rate.
    """

    epoch: int = 1
    position: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0
    decay_wait: int = 0
    weight: float | None = None
    lr_scale: float = 1.0
    sums: EpochSums = field(default_factory=EpochSums)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunState":
        own = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**{**own, "sums": EpochSums(**own["sums"])})

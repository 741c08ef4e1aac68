"""What a run knows between two updates, beside θ, H and U."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import AliasChoices, Field, TypeAdapter

from tpdist.config import Decay

Count = Annotated[int, Field(ge=0)]


@dataclass
class EpochSums:
    """Sums over the updates of one epoch so far; a float64 each, so that a resumed run goes on exactly.

    loss: nats. primal, dual: squared norms. residuals: primal by place in the window. seconds: of training alone.
    """

    loss: float = 0.0
    penalty: float = 0.0
    primal: float = 0.0
    dual: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    # older checkpoints call it `gaps`
    residuals: Annotated[list[float], Field(validation_alias=AliasChoices("residuals", "gaps"))] = field(
        default_factory=list
    )


@dataclass
class RunState:
    """epoch: the one being trained, from 1. position: windows of it that are done. step: updates in all.

    best: lowest mean validation loss; best_epoch, best_step, best_train: its epoch, the updates until its end, its mean
    training loss. stale: epochs since then. decay_wait: epochs without gain since the learning rate last fell. weight:
    λ of the epoch before. lr_scale: what the decay has left of the learning rate. skipped, skipped_in_row: updates that
    were left out because a number was not finite.
    """

    epoch: Annotated[int, Field(ge=1)] = 1
    position: Count = 0
    step: Count = 0
    tokens: Count = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: Count = 0
    best_step: Count = 0
    best_train: float | None = None
    stale: int = 0
    decay_wait: int = 0
    weight: float | None = None
    lr_scale: float = 1.0
    skipped: Count = 0
    skipped_in_row: Count = 0
    sums: EpochSums = field(default_factory=EpochSums)

    @property
    def place(self) -> str:
        """For people: in or after which epoch."""
        return f"epoch {self.epoch}" if self.position or self.epoch == 1 else f"after epoch {self.epoch - 1}"

    def decay_is_due(self, decay: Decay) -> bool:
        """At an epoch's end: is the next one's learning rate lower?"""
        if decay.start_epoch is not None:
            return self.epoch + 1 >= decay.start_epoch
        return self.decay_wait > decay.patience

    def out_of_patience(self, patience: int | None) -> bool:
        """Have as many epochs passed without gain as the run shall wait for one? patience: None for no end."""
        return patience is not None and self.stale >= patience

    def forget_best(self) -> None:
        """No epoch until here counts as the best."""
        self.best, self.best_epoch, self.best_step, self.best_train = None, 0, 0, None
        self.stale = self.decay_wait = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunState":
        """Raises pydantic's ValidationError for what `to_json` does not write."""
        return TypeAdapter(cls).validate_python(values)

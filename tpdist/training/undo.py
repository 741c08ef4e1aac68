"""What an update changes, as it was before: for `run.on_non_finite: skip`."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tpdist.training.batches import Batch
    from tpdist.training.trainer import Trainer


class Undo:
    """Copies of θ, its optimiser's state, and of H and U at the boundaries of one window."""

    def __init__(self, trainer: "Trainer", batch: "Batch"):
        own, optimizer = trainer.boundaries, trainer.theta.optimizer
        blocks = 0 if batch.window is None else batch.window.blocks
        self._trainer, self._slice = trainer, slice(batch.begin, batch.begin + blocks + 1)
        self._parameters = [p.detach().clone() for p in trainer.model.parameters()]
        self._optimizer = {p: {k: _copy(v) for k, v in state.items()} for p, state in optimizer.state.items()}
        self._states = {name: t[:, self._slice].clone() for name, t in own.tensors().items()}
        self._counts = dict(own.h_counts)
        self._carried = trainer.carried

    def restore(self) -> None:
        """Once: what was copied is handed over."""
        trainer = self._trainer
        own, optimizer = trainer.boundaries, trainer.theta.optimizer
        with torch.no_grad():
            for p, was in zip(trainer.model.parameters(), self._parameters, strict=True):
                p.copy_(was)
        optimizer.state.clear()
        for p, state in self._optimizer.items():
            optimizer.state[p] = state
        own.h_moments = {name: t for name, t in own.h_moments.items() if f"h_moments.{name}" in self._states}
        for name, tensor in own.tensors().items():
            was = tensor.clone()  # what the update left is looked at yet
            was[:, self._slice] = self._states[name]
            own.put(name, was)
        own.h_counts = self._counts
        trainer.carried = self._carried


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value

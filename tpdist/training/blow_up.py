"""Where numbers are not finite: say whose block it was, then stop the run or leave the update out."""

from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from tpdist.errors import NonFiniteError
from tpdist.training.diagnosis import first_cause, locate

if TYPE_CHECKING:
    from tpdist.tprop import BlowUpError
    from tpdist.training.batches import Batch
    from tpdist.training.trainer import Trainer
    from tpdist.training.undo import Undo


def blown_up(trainer: "Trainer", batch: "Batch", error: "BlowUpError", undo: "Undo | None") -> None:
    """Say which worker's block it was; then stop, or put back what the update changed and leave it out.

    All workers come here at once: what is not finite is a sum over them.
    """
    state, run, own = trainer.state, trainer.config.run, None
    if undo is not None:
        undo.restore()
    if batch.window is not None and error.states:
        own = locate(trainer.model, trainer.plan, batch.window, error.states)
    if own is not None:
        stream, block, what = own
        own = trainer.batches.streams[stream], trainer.batches.slots[batch.begin + block], what
    said = f"step {state.step + 1} (epoch {state.epoch}, window {state.position + 1}): {error}"
    found = trainer.workers.gather(own)
    rank = first_cause(found)
    if rank is not None:
        stream, block, what = found[rank]
        said += f"; {trainer.workers.name(rank)}, block {block} of stream {stream}: {what} is not finite"
    if undo is None:
        stop_non_finite(trainer, said)
    state.step, state.position = state.step + 1, state.position + 1
    state.skipped, state.skipped_in_row = state.skipped + 1, state.skipped_in_row + 1
    if state.skipped_in_row > run.skip_in_row:
        stop_non_finite(trainer, f"{said}; the {run.skip_in_row} updates before it were skipped")
    trainer.reporter.say(f"{said}; this update is skipped, {state.skipped} so far")


def refuse_non_finite(trainer: "Trainer", tensors: dict[str, Tensor]) -> None:
    """Stop the run where one of the `tensors` of any worker is not finite. All workers call it at once."""
    bad = (name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all())
    wrong = next(bad, None)
    if trainer.workers.any(wrong is not None):
        rank, name = next((rank, name) for rank, name in enumerate(trainer.workers.gather(wrong)) if name is not None)
        which = f"{name} of {trainer.workers.name(rank)}"
        stop_non_finite(trainer, f"after step {trainer.state.step}: a parameter or a state is not finite, {which}")


def stop_non_finite(trainer: "Trainer", what: str) -> NoReturn:
    """Raise NonFiniteError: what, the last finite figures, what is saved, what to try."""
    sums, optimizer = trainer.state.sums, trainer.config.optimizer
    last = "none in this epoch"
    if sums.tokens:
        last = f"a mean loss of {sums.loss / sums.tokens:.4g} over the epoch until then"
    trainer.writer.wait()
    saved = trainer.writer.depot.names()
    where = trainer.writer.depot.where
    kept = f"The checkpoint {where}/{saved[-1]} stays as it is" if saved else "There is no checkpoint yet"
    clip = optimizer.clip
    tighter = "an optimizer.clip, such as 1" if clip is None else f"a lower optimizer.clip (now {clip:g})"
    lower = [f"a lower optimizer.lr (now {trainer.theta.lr:g})", tighter]
    tries = [f"a larger objective.weight (now {trainer.plan.terms.weight:g})"] if trainer.plan.als else lower
    if trainer.plan.moves_targets:
        tries.append(f"a lower method.h_optimizer.lr (now {trainer.plan.h.lr:g})")
    if trainer.plan.dual:
        tries.append(f"a lower method.dual.lr (now {trainer.plan.dual.lr:g})")
    raise NonFiniteError(f"{what}; the last finite values: {last}. {kept}. Try {', '.join(tries)}")

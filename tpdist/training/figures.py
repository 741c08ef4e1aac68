"""What updates add up to, and how it is told: the run's sums, rows of metrics, the live status."""

import math
import socket
import time
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch

from tpdist.tprop import BlowUpError, Outcome
from tpdist.training.evaluation import perplexity
from tpdist.training.progress import Status
from tpdist.training.workers_view import WorkerFigures

if TYPE_CHECKING:
    from tpdist.training.batches import Batch
    from tpdist.training.trainer import Trainer

FIGURES = ("the loss", "the penalty", "the primal residual", "the dual residual", "the norm of the gradient of θ")


def count_update(trainer: "Trainer", batch: "Batch", outcome: Outcome, began: float) -> None:
    """Add an update to the run's sums. Reading the loss waits for the device: once a window, never inside it.

    The leader's wish for a checkpoint, and anybody's to stop, go round with the figures. began: of the update, by
    `time.monotonic`. Raises BlowUpError where a figure is not finite, before anything is added.
    """
    workers, theta, state = trainer.workers, trainer.theta, trainer.state
    figures = [x.double() for x in (outcome.loss, outcome.penalty, outcome.primal, outcome.dual)]
    if theta.norm is not None and not theta.watch:
        figures.append(theta.norm.double())
    wishes = (trainer.checkpoint_due(), trainer.stop.received)
    wished = [torch.full((), float(wish), dtype=torch.float64, device=trainer.device) for wish in wishes]
    due, stop, *summed = workers.sum(torch.cat([torch.stack([*wished, *figures]), outcome.residuals])).tolist()
    values, residuals = summed[: len(figures)], summed[len(figures) :]
    trainer.due, trainer.stopping = due > 0, stop > 0
    seconds = time.monotonic() - began
    for name, value in zip(FIGURES, values, strict=False):
        if not math.isfinite(value):
            raise BlowUpError(f"{name} is {value}", outcome.states)
    state.skipped_in_row = 0
    state.step += 1
    state.position += 1
    state.tokens += batch.tokens
    state.seconds += seconds
    trainer.seconds += seconds
    trainer.own_tokens += batch.own
    sums = state.sums
    sums.loss, sums.penalty, sums.primal, sums.dual = (
        a + b for a, b in zip((sums.loss, sums.penalty, sums.primal, sums.dual), values, strict=False)
    )
    sums.residuals = [a + b for a, b in zip_longest(sums.residuals, residuals, fillvalue=0.0)]
    sums.tokens += batch.tokens
    sums.seconds += seconds


def metrics_row(trainer: "Trainer", kind: str) -> dict[str, Any]:
    """A line of `metrics.jsonl`, over the epoch so far: means a token; of `primal` and `dual` norms."""
    status, sums = live_status(trainer), trainer.state.sums
    return {
        "kind": kind,
        "epoch": trainer.state.epoch,
        "step": trainer.state.step,
        "loss": status.loss,
        "perplexity": status.perplexity,
        "penalty": sums.penalty / max(1, sums.tokens),
        "primal": status.primal,
        "dual": status.dual,
        "weight": trainer.plan.terms.weight,
        "tokens_per_second": status.tokens_per_second,
        "seconds": trainer.state.seconds,
    }


def live_status(trainer: "Trainer") -> Status:
    """What a person sees of the run between two updates."""
    state, sums, epochs = trainer.state, trainer.state.sums, trainer.config.run.epochs
    loss = sums.loss / sums.tokens if sums.tokens else math.nan  # all updates of the epoch so far were skipped
    # not epochs times updates: a run that goes on with other streams has had epochs of another length
    left = (epochs - state.epoch) * len(trainer.batches) + len(trainer.batches) - state.position
    return Status(
        epoch=state.epoch,
        epochs=epochs,
        step=state.step,
        steps=state.step + left,
        loss=loss,
        perplexity=perplexity(loss),
        primal=math.sqrt(sums.primal),
        dual=math.sqrt(sums.dual),
        tokens_per_second=sums.tokens / max(sums.seconds, 1e-9),
        seconds_left=state.seconds / max(1, state.step) * left,
        workers=(own_work(trainer),) if trainer.workers.count > 1 else (),
    )


def own_work(trainer: "Trainer") -> WorkerFigures:
    """This worker's part since the run was last started."""
    traffic, seconds = trainer.workers.traffic, max(trainer.seconds, 1e-9)
    traffic.settle()
    return WorkerFigures(
        rank=trainer.workers.rank,
        host=socket.gethostname(),
        tokens_per_second=trainer.own_tokens / seconds,
        neighbours=traffic.neighbours_s / seconds,
        reduction=traffic.reduction_s / seconds,
        sent=traffic.exchange + traffic.carried + traffic.gradient,
    )

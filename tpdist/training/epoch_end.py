"""The end of an epoch: evaluation, the row of metrics, the models that are kept, the next epoch's learning rate."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from tpdist.data import Split, Tokens
from tpdist.models import LanguageModel
from tpdist.training.blow_up import stop_non_finite
from tpdist.training.evaluation import Evaluation, evaluate_tokens, joined, share_of_loss
from tpdist.training.figures import metrics_row, own_work
from tpdist.training.kept_model import KeptModel
from tpdist.training.tracking import Tracker

if TYPE_CHECKING:
    from tpdist.training.trainer import Trainer


def evaluate_split(trainer: "Trainer", model: LanguageModel, split: Split) -> Evaluation:
    """By all workers, each a run of its pieces; by the leader alone where the model forgets too slowly for that.

    model: the same on all of them. Raises Interrupted.
    """

    def tick() -> None:
        if trainer.stop.received:
            raise _StopEvaluationError

    tokens, workers, block = trainer.store.tokens(split), trainer.workers, trainer.config.objective.block
    loss = None if workers.count == 1 else _shared(trainer, model, tokens, block, tick)
    if loss is None:
        loss = -1.0
        if workers.leads:
            with suppress(_StopEvaluationError):
                loss = evaluate_tokens(model, tokens, block, tick=tick).loss
        loss = workers.from_leader(loss)
        trainer.leave_if(loss < 0)
    return Evaluation(loss, len(tokens) - 1)


def _shared(
    trainer: "Trainer", model: LanguageModel, tokens: Tokens, block: int, tick: Callable[[], None]
) -> float | None:
    """Mean loss in nats; None where a worker cannot have its part without the others'."""
    workers = trainer.workers
    try:
        share = share_of_loss(model, tokens, block, workers.rank, workers.count, tick)
        tick()  # a worker without pieces has not looked yet
    except _StopEvaluationError:
        share = None
    figures = [share.loss or 0.0, share.loss is None, False] if share else [0.0, True, True]
    loss, missing, stops = workers.sum(torch.tensor(figures, dtype=torch.float64, device=trainer.device)).tolist()
    trainer.leave_if(stops > 0)
    assert share is not None
    together = not missing and joined(workers.sum(share.joints), model.bias.dtype)
    return loss / (len(tokens) - 1) if together else None


def end_epoch(trainer: "Trainer", valid: Evaluation, tracker: Tracker | None) -> None:
    """Log, keep the best model, decay the learning rate, say so where patience is out, hand states on.

    Raises NonFiniteError.
    """
    state, decay, patience = trainer.state, trainer.config.optimizer.decay, trainer.config.run.patience
    if not math.isfinite(valid.perplexity):
        where = f"after step {state.step} (epoch {state.epoch})"
        stop_non_finite(trainer, f"{where}: the valid loss is {valid.loss:.4g} nats a token")
    row = metrics_row(trainer, "epoch")
    better = state.best is None or valid.loss < state.best
    if better:
        state.best, state.best_epoch, state.best_step = valid.loss, state.epoch, state.step
        state.best_train = row["loss"] if state.sums.tokens else None
        state.stale = state.decay_wait = 0
    else:
        state.stale += 1
        state.decay_wait += 1
    row |= {"valid_loss": valid.loss, "valid_perplexity": valid.perplexity, "lr": trainer.theta.lr}
    row["residuals"] = [math.sqrt(square) for square in state.sums.residuals]
    if trainer.workers.count > 1:  # in the order of the ranks, as the live table has them
        work = own_work(trainer)
        speed, waiting = zip(*trainer.workers.gather([work.tokens_per_second, work.waiting]), strict=True)
        row |= {"worker_tokens_per_second": speed, "worker_waiting": waiting}
    if tracker is not None:
        tracker.write(row)
    trainer.reporter.say(
        f"epoch {state.epoch:>3}  train ppl {row['perplexity']:>8.2f}  valid ppl {valid.perplexity:>8.2f}"
        f"  |r| {row['primal']:.3g}  |s| {row['dual']:.3g}  {row['tokens_per_second']:>8,.0f} tok/s"
        f"{'  best' if better else ''}"
    )
    if trainer.workers.leads:
        _save_models(trainer, valid, better)
    if decay and state.decay_is_due(decay):
        state.lr_scale *= decay.factor
        state.decay_wait = 0
        trainer.set_lr()
    if state.out_of_patience(patience):
        trainer.reporter.say(f"no gain in {state.stale} epochs: stopped")
    hand_on(trainer)


def _save_models(trainer: "Trainer", valid: Evaluation, better: bool) -> None:
    about = {
        "corpus": trainer.store.manifest.checksum,
        "types": len(trainer.store.vocabulary),
        "epoch": trainer.state.epoch,
        "step": trainer.state.step,
        "valid_perplexity": valid.perplexity,
        "model": trainer.config.model.model_dump(mode="json"),
    }
    if better:
        KeptModel(trainer.run, "best").save(trainer.model, about)
    KeptModel(trainer.run, "last").save(trainer.model, about)


def hand_on(trainer: "Trainer") -> None:
    """Where workers draw windows of their own spans: what waits at a span's edge for the span beside it.

    The prediction at its end goes to the span after it; with `method.edge_costate: kept`, the costate at its start to
    the one before.
    """
    own, neighbours = trainer.boundaries, trainer.workers.neighbours
    if not trainer.batches.own_windows or neighbours is None:
        return
    if own.h is not None:
        from_left = neighbours.hand_on(own.h[:, -1])
        if from_left is not None:
            own.h[:, 0] = from_left
    if own.costate is not None and trainer.plan.edge_costate:
        from_right = neighbours.hand_back(own.costate[:, 0])
        if from_right is not None:
            own.costate[:, -1] = from_right


class _StopEvaluationError(Exception):
    """The user wants to stop during an evaluation."""

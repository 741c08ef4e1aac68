"""The loop on one worker: windows → visits → metrics → evaluation → checkpoint."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpdist.config import Experiment
from tpdist.data import Split, Store
from tpdist.errors import ConfigError, Interrupted, NonFiniteError, RunError
from tpdist.models import build_model
from tpdist.models.build import DTYPES
from tpdist.parallel import Place
from tpdist.tprop import Alone, Boundaries, Outcome, Theta, als_visit, plan_epoch, visit
from tpdist.training.batches import Batch, Batches
from tpdist.training.checkpoints import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from tpdist.training.evaluation import Evaluation, evaluate_tokens, perplexity
from tpdist.training.progress import Reporter, Status
from tpdist.training.run_dir import RunDirectory, load_parameters, unique_state
from tpdist.training.signals import StopSignal
from tpdist.training.state import EpochSums, RunState
from tpdist.training.tracking import Tracker


@dataclass(frozen=True)
class Fit:
    """What `Trainer.fit` reached; the best epoch's validation perplexity."""

    state: RunState
    best_perplexity: float


class Trainer:
    """Trains one configuration in one run directory.

    Raises ConfigError where the configuration does not fit the corpus or the device, NonFiniteError where the
    loss does, Interrupted after SIGINT or SIGTERM, once everything is saved.
    """

    def __init__(self, config: Experiment, store: Store, run: RunDirectory, reporter: Reporter):
        self.config, self.store, self.run, self.reporter = config, store, run, reporter
        self.device = pick_device(config)
        self.model = build_model(config.model, config.run, len(store.vocabulary)).to(self.device)
        self.theta = Theta(self.model, config.optimizer)
        self.batches = Batches(config, store.tokens("train"), Place(), self.device, DTYPES[config.run.dtype])
        self.neighbours = Alone()
        self.state = RunState(lr=config.optimizer.lr)
        self.plan = plan_epoch(config, 1, self.batches.per_window)
        self.boundaries = Boundaries.for_plan(
            self.plan, len(self.batches.streams), self.batches.blocks, self.model
        )
        self.carried = self.model.zero_state(len(self.batches.streams))

    def resume(self) -> None:
        """Continue from the newest whole checkpoint of the run. Raises RunError where it holds another model."""
        tensors, state = load_checkpoint(self.run.checkpoints, self.reporter.say)
        model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        load_parameters(self.model, model, str(self.run.checkpoints))
        if state["corpus"] != self.store.manifest.checksum:
            raise RunError(
                f"{self.run.path}: was trained on another corpus than the store at {self.store.directory} now holds; "
                f"prepare that corpus again or start a new run"
            )
        self._load_boundaries(tensors, state)
        unpack_optimizer(self.theta.optimizer, "theta.", tensors, state["theta_scalars"])
        self.carried = tensors["carried"].to(self.device)
        self.state = RunState.from_json(state)
        self.theta.lr = self.state.lr or self.config.optimizer.lr

    def fit(self, stop: StopSignal) -> Fit:
        """Train until the epochs are done or patience is out; evaluate and save after every epoch."""
        state, run = self.state, self.config.run
        tracker = Tracker(self.run, state.step)
        try:
            while state.epoch <= run.epochs and not self._out_of_patience():
                self._begin_epoch()
                self._train_epoch(stop, tracker)
                self._end_epoch(self._evaluate("valid", stop), tracker)
        finally:
            tracker.close()
        assert state.best is not None
        return Fit(state, perplexity(state.best))

    def _begin_epoch(self) -> None:
        state = self.state
        self.plan = plan_epoch(self.config, state.epoch, self.batches.per_window)
        if state.weight is not None:
            self.boundaries.rescale_duals(state.weight, self.plan.terms.weight)
        state.weight = self.plan.terms.weight

    def _train_epoch(self, stop: StopSignal, tracker: Tracker) -> None:
        state, every = self.state, self.config.run.checkpoint_every
        if state.position == 0:
            self.carried = torch.zeros_like(self.carried)
        for batch in self.batches.epoch(state.epoch, skip=state.position):
            began = time.monotonic()
            outcome = self._visit(batch)
            self.carried = outcome.carry
            self._count(batch, outcome, time.monotonic() - began)
            self.reporter.step(self._status())
            if state.step % self.config.run.log_every == 0:
                tracker.write(self._row("step"))
            if stop.received:
                self._save_and_leave()
            if every and state.step % every == 0:
                self.save_checkpoint()

    def _visit(self, batch: Batch) -> Outcome:
        where = (batch.window, batch.begin, self.boundaries, self.carried, self.neighbours)
        if self.config.method.name == "als":
            return als_visit(self.model, self.plan, *where)
        return visit(self.model, self.plan, self.theta, *where)

    def _count(self, batch: Batch, outcome: Outcome, seconds: float) -> None:
        """Add an update to the sums. Reading the loss waits for the device: once a window, never inside it."""
        values = torch.stack([outcome.loss, outcome.penalty, outcome.primal, outcome.dual]).tolist()
        state, sums = self.state, self.state.sums
        if not all(map(math.isfinite, values)):
            self._stop_non_finite(values[0])
        state.step += 1
        state.position += 1
        state.tokens += batch.window.tokens
        state.seconds += seconds
        sums.loss, sums.penalty, sums.primal, sums.dual = (
            a + b for a, b in zip((sums.loss, sums.penalty, sums.primal, sums.dual), values, strict=True)
        )
        sums.tokens += batch.window.tokens
        sums.seconds += seconds

    def _stop_non_finite(self, loss: float) -> None:
        state, sums = self.state, self.state.sums
        last = f"mean loss of the epoch until then {sums.loss / sums.tokens:.4g}" if sums.tokens else "first of its epoch"
        optimizer = self.config.optimizer
        raise NonFiniteError(
            f"step {state.step + 1} (epoch {state.epoch}, window {state.position + 1}): the loss is {loss}, or a residual "
            f"is not finite; {last}. The last checkpoint stays in {self.run.checkpoints}. Try a lower optimizer.lr (now "
            f"{self.theta.lr:g}), a lower optimizer.clip (now {optimizer.clip}), or a lower "
            f"method.h_optimizer.lr (now {self.plan.h.lr:g})"
        )

    def _evaluate(self, split: Split, stop: StopSignal) -> Evaluation:
        def tick(done: int, total: int) -> None:
            if stop.received:
                self._save_and_leave()

        return evaluate_tokens(self.model, self.store.tokens(split), self.config.objective.block, tick=tick)

    def _end_epoch(self, valid: Evaluation, tracker: Tracker) -> None:
        """Log, keep the best model, decay the learning rate, stop early, save."""
        state, decay = self.state, self.config.optimizer.decay
        better = state.best is None or valid.loss < state.best
        if better:
            state.best, state.best_epoch = valid.loss, state.epoch
            state.stale = state.decay_wait = 0
        else:
            state.stale += 1
            state.decay_wait += 1
        row = self._row("epoch") | {"valid_loss": valid.loss, "valid_perplexity": valid.perplexity, "lr": self.theta.lr}
        tracker.write(row)
        self.reporter.say(
            f"epoch {state.epoch:>3}  train ppl {row['perplexity']:>8.2f}  valid ppl {valid.perplexity:>8.2f}"
            f"  |r| {row['primal']:.3g}  |s| {row['dual']:.3g}  {row['tokens_per_second']:>8,.0f} tok/s"
            f"{'  best' if better else ''}"
        )
        about = {
            "types": len(self.store.vocabulary),
            "epoch": state.epoch,
            "step": state.step,
            "valid_perplexity": valid.perplexity,
            "model": self.config.model.model_dump(mode="json"),
        }
        if better:
            self.run.save_model("best", self.model, about)
        self.run.save_model("last", self.model, about)
        if decay and state.decay_wait > decay.patience:
            self.theta.lr *= decay.factor
            state.decay_wait = 0
        state.lr = self.theta.lr
        if self._out_of_patience():
            self.reporter.say(f"no gain in {state.stale} epochs: stopped")
        state.epoch, state.position, state.sums = state.epoch + 1, 0, EpochSums()
        self.save_checkpoint()

    def _out_of_patience(self) -> bool:
        patience = self.config.run.patience
        return patience is not None and self.state.stale >= patience

    def _row(self, kind: str) -> dict[str, Any]:
        status = self._status()
        sums = self.state.sums
        return {
            "kind": kind,
            "epoch": self.state.epoch,
            "step": self.state.step,
            "loss": status.loss,
            "perplexity": status.perplexity,
            "penalty": sums.penalty / max(1, sums.tokens),
            "primal": status.primal,
            "dual": status.dual,
            "weight": self.plan.terms.weight,
            "tokens_per_second": status.tokens_per_second,
            "seconds": self.state.seconds,
        }

    def _status(self) -> Status:
        state, sums, epochs = self.state, self.state.sums, self.config.run.epochs
        loss = sums.loss / max(1, sums.tokens)
        steps = epochs * len(self.batches)
        return Status(
            epoch=state.epoch,
            epochs=epochs,
            step=state.step,
            steps=steps,
            loss=loss,
            perplexity=perplexity(loss),
            primal=math.sqrt(sums.primal),
            dual=math.sqrt(sums.dual),
            tokens_per_second=sums.tokens / max(sums.seconds, 1e-9),
            seconds_left=state.seconds / max(1, state.step) * (steps - state.step),
        )

    def _save_and_leave(self) -> None:
        self.save_checkpoint()
        raise Interrupted(
            f"stopped at step {self.state.step}; saved. Continue with: tpdist train --resume {self.run.path}"
        )

    def save_checkpoint(self) -> None:
        """Everything that the next step depends on."""
        tensors = {f"model.{name}": p for name, p in unique_state(self.model).items()}
        theta, scalars = pack_optimizer(self.theta.optimizer, "theta.")
        tensors |= theta | {f"boundaries.{name}": t for name, t in self.boundaries.tensors().items()}
        tensors["carried"] = self.carried
        state = {
            "corpus": self.store.manifest.checksum,
            "theta_scalars": scalars,
            "h_counts": self.boundaries.h_counts,
            **self.state.to_json(),
        }
        name = f"step-{self.state.step:08d}" + ("-epoch" if self.state.position == 0 else "")
        save_checkpoint(self.run.checkpoints / name, tensors, state, self.config.run.keep_last)

    def _load_boundaries(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        own = self.boundaries
        saved = {n.removeprefix("boundaries."): t for n, t in tensors.items() if n.startswith("boundaries.")}
        for name, tensor in own.tensors().items():
            if name not in saved or saved[name].shape != tensor.shape:
                raise RunError(f"{self.run.checkpoints}: its stored states do not fit the configuration ({name})")
            tensor.copy_(saved[name])
        own.h_moments = {
            n.removeprefix("h_moments."): t.to(self.device) for n, t in saved.items() if n.startswith("h_moments.")
        }
        own.h_counts = {int(begin): counts for begin, counts in state["h_counts"].items()}


def pick_device(config: Experiment) -> torch.device:
    """The device of `run.device`. Raises ConfigError where there is none."""
    name = config.run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device here; write cpu or auto", "run.device")
    return torch.device(name)

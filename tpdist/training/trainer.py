"""The loop on one worker: windows → visits → metrics → evaluation → checkpoint."""

import time

import torch

from tpdist.config import Experiment, records_updates
from tpdist.data import Store
from tpdist.errors import Interrupted, RunError
from tpdist.models import build_model
from tpdist.models.build import DTYPES
from tpdist.parallel import Workers
from tpdist.tprop import (
    Alone,
    BlowUpError,
    Boundaries,
    Captured,
    CudaGraphs,
    Neighbours,
    Outcome,
    Theta,
    als_visit,
    own_function,
    plan_epoch,
    visit,
)
from tpdist.training.batches import Ahead, Batch, Batches
from tpdist.training.blow_up import blown_up, refuse_non_finite
from tpdist.training.checkpoints import load_checkpoint
from tpdist.training.checks import pick_device, try_optimizers
from tpdist.training.depots import depot_for
from tpdist.training.diagnosis import compare_workers
from tpdist.training.epoch_end import end_epoch, evaluate_split
from tpdist.training.figures import count_update, live_status, metrics_row
from tpdist.training.kept_model import KeptModel
from tpdist.training.profiling import Profile
from tpdist.training.progress import Reporter
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import Regroup, StopSignal
from tpdist.training.snapshot import pack, restore
from tpdist.training.state import EpochSums, RunState
from tpdist.training.tracking import Tracker
from tpdist.training.undo import Undo
from tpdist.training.writer import Writer


class Trainer:
    """Trains one configuration in one run directory.

    Raises ConfigError where the configuration does not fit the corpus or the device, NonFiniteError where the
    loss does, Interrupted after a signal to end, once everything is saved.
    """

    def __init__(
        self,
        config: Experiment,
        store: Store,
        run: RunDirectory,
        reporter: Reporter,
        workers: Workers | None = None,
        device: torch.device | None = None,
    ):
        self.config, self.store, self.run, self.reporter = config, store, run, reporter
        self.workers = workers or Workers.alone()
        self.device = device or pick_device(config)
        self.model = build_model(config.model, config.run, len(store.vocabulary)).to(self.device)
        tokens = store.tokens("train")
        self.batches = Batches(config, tokens, self.workers.place, self.device, DTYPES[config.run.dtype])
        self.coming = Ahead(iter(()))
        self.state = RunState()
        self.seconds = 0.0  # of training in this process, where `state.seconds` counts from the run's beginning
        self.own_tokens = 0  # of this worker's blocks, in the same time
        self.plan = plan_epoch(config, 1, self.batches.per_window)
        try_optimizers(config, self.plan, self.device)
        gradient_sum = self.workers.gradient_sum(self.model.in_backward_order(), self.model.rows_of_tokens)
        captured = self.device.type == "cuda" and records_updates(config)
        self.theta = Theta(self.model, config.optimizer, gradient_sum, captured)
        # reading the norm costs nothing on a CPU, and on a GPU the wait for it; a graph cannot wait
        unguarded = self.device.type == "cpu" or not (self.theta.guards or captured)
        self.theta.watch = unguarded or config.run.on_non_finite == "skip"
        self.one_visit = own_function(config.method.visit, "method.visit") or visit
        if captured:
            self.one_visit = Captured(CudaGraphs(self.device), reporter.say)
        self.boundaries = Boundaries.for_plan(
            self.plan, len(self.batches.streams), len(self.batches.slots) - 1, self.model
        )
        self.carried = self.model.zero_state(len(self.batches.streams))
        self.writer = Writer(depot_for(config, run), self.workers, config.run.keep_last)
        self.saved_at = time.monotonic()  # the leader's clock decides when `run.checkpoint_every_s` are over
        self.stop = StopSignal()  # the user's, from `fit` on
        self.due = self.stopping = False  # what workers agreed on with the figures of the last update

    def resume(self) -> None:
        """Continue from the newest whole checkpoint of the run. Raises RunError where it does not fit."""
        depot, say = self.writer.depot, self.reporter.say
        # the leader chooses: another worker may see the directory as it was, or as it will be
        loaded = load_checkpoint(depot, say) if self.workers.leads else None
        name = self.workers.gather(loaded and loaded.name)[0]
        loaded = loaded or load_checkpoint(depot, say, only=name)
        restore(self, loaded)
        self.workers.wait_for_all()  # nobody looks for a checkpoint any more
        if self.workers.leads:
            for name in loaded.damaged:
                self.writer.depot.set_aside(name)
        self.set_lr()
        self._look_at_best()

    def _look_at_best(self) -> None:
        """A model of the best epoch that cannot be read does not count. Raises RunError where no epoch is left."""
        damage = None
        if self.workers.leads and self.state.best is not None:
            damage = KeptModel(self.run, "best").damage(self.state.best_step)
        damage = self.workers.gather(damage)[0]
        if damage is None and self.over and self.state.best is None:  # as it was found before
            damage = f"{self.run.path}: the model of its best epoch was damaged"
        if damage is None:
            return
        if self.over:
            raise RunError(f"{damage}; no epoch is left to write another: {self.for_more}, or evaluate --model last")
        self.reporter.say(f"{damage}; the best of the epochs to come counts")
        self.state.forget_best()

    @property
    def over(self) -> bool:
        """No epoch is left to train."""
        return self.state.epoch > self.config.run.epochs or self.state.out_of_patience(self.config.run.patience)

    @property
    def for_more(self) -> str:
        """What to set where the run is over and shall go on."""
        sets = [f"run.epochs={self.state.epoch}"] if self.state.epoch > self.config.run.epochs else []
        sets += [f"run.patience={self.state.stale + 1}"] * self.state.out_of_patience(self.config.run.patience)
        return f"--set {' '.join(sets)}, or more"

    def fit(self, stop: StopSignal) -> None:
        """Train until the epochs are done or patience is out; evaluate and save after every epoch."""
        self.stop, state, tracker = stop, self.state, None
        if self.workers.leads:
            tracker = Tracker(self.run, state.step, state.epoch, self.config, self.reporter.say)
        place = self.workers.place
        self.profile = Profile(
            self.config.run.profile, self.run.profile, f"worker-{place.stream}-{place.time}", state.step
        )
        try:
            while not self.over:
                if state.position == 0 and self.workers.any(stop.at_epoch_end):
                    self.writer.wait()  # the next group goes on from it
                    raise Regroup
                self._begin_epoch()
                self._train_epoch(tracker)
                end_epoch(self, evaluate_split(self, self.model, "valid"), tracker)
                self._next_epoch()
            self.writer.wait()
        finally:
            self.profile.close()
            if tracker is not None:
                tracker.close()

    def _begin_epoch(self) -> None:
        state = self.state
        self.plan = plan_epoch(self.config, state.epoch, self.batches.per_window)
        if state.weight is not None:
            self.boundaries.rescale_duals(state.weight, self.plan.terms.weight)
        state.weight = self.plan.terms.weight

    def _train_epoch(self, tracker: Tracker | None) -> None:
        state, every = self.state, self.config.run.checkpoint_every
        if state.position == 0:
            self.carried = torch.zeros_like(self.carried)
        self.coming = Ahead(self.batches.epoch(state.epoch, skip=state.position))
        for batch in self.coming:
            # several have agreed on it with the figures of the update before; one alone need not wait for those
            self.leave_if(self.stopping or (self.workers.count == 1 and self.stop.received))
            self.update(batch)
            self.profile.step()
            if state.step % self.config.run.check_every == 0:
                compare_workers(self.workers, self.theta.parameters, state.step)
            self.reporter.step(live_status(self))
            if tracker is not None and state.step % self.config.run.log_every == 0:
                tracker.write(metrics_row(self, "step"))
            self.writer.check()
            if self.due or (every and state.step % every == 0):
                self.save_checkpoint()

    def update(self, batch: Batch) -> None:
        """One visit of a window, and its figures."""
        began = time.monotonic()
        undo = Undo(self, batch) if self.config.run.on_non_finite == "skip" else None
        try:
            outcome = self._visit(batch)
            self.carried = outcome.carry
            self.coming.prepare()
            count_update(self, batch, outcome, began)
        except BlowUpError as error:
            blown_up(self, batch, error, undo)

    def _visit(self, batch: Batch) -> Outcome:
        if batch.window is None:
            return self._take_part(batch)
        where = (batch.window, batch.begin, self.boundaries, self.carried, self._neighbours(batch))
        if self.plan.als:
            return als_visit(self.model, self.plan, *where, self.workers.sum_all)
        return self.one_visit(self.model, self.plan, self.theta, *where)

    def _neighbours(self, batch: Batch) -> Neighbours:
        if self.workers.neighbours is None or self.batches.own_windows:
            return Alone()
        return self.workers.neighbours.among(batch.active)

    def _take_part(self, batch: Batch) -> Outcome:
        """An update with no block of this worker's: it adds nothing to the gradients, and takes the same steps."""
        for _ in range(self.plan.theta_steps):
            self.theta.begin(None, batch.tokens)
            self.theta.step(batch.tokens)
        nothing = torch.zeros((), device=self.device)
        return Outcome(nothing, nothing, nothing.expand(self.plan.bins).double(), nothing, self.carried)

    def _next_epoch(self) -> None:
        self.state.epoch, self.state.position, self.state.sums = self.state.epoch + 1, 0, EpochSums()
        self.save_checkpoint()

    def set_lr(self) -> None:
        """θ's learning rate, as far as it has decayed."""
        self.theta.lr = self.config.optimizer.lr * self.state.lr_scale

    def leave_if(self, stop: bool) -> None:
        """Save everything, and raise Interrupted. All workers come here with one answer."""
        if stop:
            self.save_checkpoint()
            self.writer.wait()
            raise Interrupted(f"stopped at step {self.state.step}; saved. Continue with: {self.run.resume_command}")

    def checkpoint_due(self) -> bool:
        """By the leader's clock; not while the last one is still being written."""
        every, passed = self.config.run.checkpoint_every_s, time.monotonic() - self.saved_at
        return every is not None and self.workers.leads and passed >= every and not self.writer.busy

    def save_checkpoint(self) -> None:
        """Begin to save everything that the next step depends on; `writer.wait` waits for the end of it.

        Raises NonFiniteError rather than save what no step can use.
        """
        packed = pack(self)
        refuse_non_finite(self, packed.tensors | packed.states)
        compare_workers(self.workers, self.theta.parameters, self.state.step)
        state = self.state
        name = f"step-{state.step:08d}" + ("-epoch" if state.position == 0 else "")
        best = f"step-{state.best_step:08d}-epoch" if self.config.run.keep_best else None
        self.writer.write(name, packed, best)
        self.saved_at, self.due = time.monotonic(), False  # an update that is left out agrees on nothing

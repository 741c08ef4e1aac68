"""One run on one worker, from a resolved configuration to `result.json`."""

from contextlib import nullcontext, suppress

import torch

from tpdist.config import Experiment
from tpdist.data import Store
from tpdist.data.disk import NO_SPACE
from tpdist.errors import Interrupted, OutputError, RunError, first_line
from tpdist.parallel import Traffic, Workers
from tpdist.training.changes import Change, note_changes, text
from tpdist.training.checks import device_name, set_kernels
from tpdist.training.depot import OWNER, Depot
from tpdist.training.depots import depot_for, forget, shut
from tpdist.training.epoch_end import evaluate_split
from tpdist.training.evaluation import perplexity
from tpdist.training.files import read_json, write_json
from tpdist.training.heap import keep_freed_memory
from tpdist.training.interchange import start_from
from tpdist.training.kept_model import KeptModel
from tpdist.training.locks import PATIENCE_S
from tpdist.training.progress import Reporter
from tpdist.training.result import Result
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import StopSignal
from tpdist.training.summary import conclusion, introduction
from tpdist.training.trainer import Trainer


def run_worker(
    config: Experiment,
    store: Store,
    run: RunDirectory,
    reporter: Reporter,
    resume: bool,
    workers: Workers | None = None,
    stop: StopSignal | None = None,
    device: torch.device | None = None,
    recoveries: int | None = None,
    announce: bool = True,
) -> Result | None:
    """Train, or go on training, then evaluate the best model on the test split and write `result.json`.

    With several `workers` every one of them calls it; the leader alone writes what is not sharded and returns a
    result. stop: how the user ends the run, if not by a signal to this process. A new run that ends before its
    first update leaves no directory behind, unless a controller hosts it, which mends runs: it gives `recoveries`, how
    many there were, and lets the worker announce itself once.

    Raises, beside what `Trainer` does, RunError where the disk or the memory is full, or another process trains in
    the directory.
    """
    workers, trainer, depot, hosted = workers or Workers.alone(), None, None, recoveries is not None
    lock = run.held(PATIENCE_S if hosted else 0.0) if workers.leads else nullcontext()
    with lock, nullcontext(stop) if stop else StopSignal() as stop:
        set_kernels(config.run)
        keep_freed_memory()
        try:
            found = depot_for(config, run)
            if workers.leads:
                _clear(found, config, run, resume)
            depot = found
            workers.wait_for_all()
            trainer = Trainer(config, store, run, reporter, workers, device)
            if resume:
                trainer.resume()
            elif config.model.init_from is not None:
                start_from(trainer.model, config.model.init_from, store.vocabulary)
            nothing_left = resume and trainer.over and _has_result(run, trainer)
            changed: list[Change] = []
            if resume and workers.leads and not nothing_left:
                changed = note_changes(run, config, trainer.state.epoch, trainer.state.step)
                run.save_config(config)
            if announce:
                for line in introduction(trainer):
                    reporter.say(line)
                if resume:
                    reporter.say(f"resumed at step {trainer.state.step}, {trainer.state.place}{_fallen(trainer)}")
                if changed:
                    reporter.say(f"changed from here on: {', '.join(map(text, changed))}")
                if resume and trainer.over:
                    what = "do" if nothing_left else "train"
                    reporter.say(f"nothing is left to {what}; for more: {trainer.for_more}")
            trainer.fit(stop)
            test = _test(trainer) if config.run.test else None
            traffic = workers.total_traffic()
            if not workers.leads:
                return None
            result = _result(trainer, test, traffic, recoveries)
            if not nothing_left:
                write_json(run.result_file, result.to_json())
        except BaseException as error:
            if trainer is not None:
                trainer.writer.give_up()
            started = trainer is not None and trainer.state.step > 0
            if workers.leads and not (hosted or resume or started or _saved(depot)):
                forget(config, run)
            explained = _explained(error, depot, run)
            if explained is None:
                raise
            raise explained from error
    for line in conclusion(result):
        reporter.say(line)
    return result


def _fallen(trainer: Trainer) -> str:
    """What of `optimizer.lr` a resumed run still learns by, which holds for a changed one too."""
    scale, lr = trainer.state.lr_scale, trainer.config.optimizer.lr
    return f"; learning rate {lr * scale:.3g}, {scale:.3g} of optimizer.lr by its decay so far" if scale != 1 else ""


def _clear(depot: Depot, config: Experiment, run: RunDirectory, resume: bool) -> None:
    """What killed processes left. Raises RunError where another run of this name has its checkpoints.

    Or ConfigError, where they cannot be written.
    """
    to = config.run.checkpoint_to
    try:
        if not resume:
            refuse_occupied(depot)
        elsewhere = to is not None and (not resume or depot.names())
        if elsewhere and depot.claim(run.identity()) != run.identity():
            mend = "leave run.checkpoint_to as it was" if resume else "give --run-dir a new name"
            raise RunError(
                f"{depot.where}: is the place of another run of this name; {mend}, or delete {depot.where}/{OWNER} if "
                "that run is no more"
            )
        depot.clear_leftovers()
    except OSError as error:
        raise error if to is None else shut(to, error.strerror) from error


def refuse_occupied(depot: Depot) -> None:
    """Raise RunError where a new run would find checkpoints."""
    if depot.names():
        raise RunError(f"{depot.where}: holds checkpoints already; give --run-dir a new name")


def _has_result(run: RunDirectory, trainer: Trainer) -> bool:
    """Whether `result.json` is of all that was trained, and has all that is asked for."""
    try:
        was = read_json(run.result_file)
        tested = was["test_perplexity"] is not None or not trainer.config.run.test
        return tested and (was["steps"], was["epochs"]) == (trainer.state.step, trainer.state.epoch - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _explained(error: BaseException, depot: Depot | None, run: RunDirectory) -> BaseException | None:
    """What to tell the user in the place of `error`, with the way on; None where it speaks for itself."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"stopped at once; {_how_to_go_on(depot, run)}")
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if on_cpu or isinstance(error, torch.OutOfMemoryError):
        return RunError(
            f"{first_line(error).rstrip('.')}. Write a smaller batching.chunk_tokens, or in a new run fewer "
            f"batching.streams; {_how_to_go_on(depot, run)}"
        )
    if isinstance(error, OutputError):
        return OutputError(f"{error}; {_how_to_go_on(depot, run)}")
    if isinstance(error, OSError) and error.strerror:
        full = f"no space left on the disk ({error.strerror})" if error.errno in NO_SPACE else error.strerror
        return RunError(f"{error.filename or run.path}: {full}; {_how_to_go_on(depot, run)}")
    return None


def _saved(depot: Depot | None) -> list[str]:
    """The checkpoints, as far as anybody can tell."""
    with suppress(RunError):
        return depot.names() if depot else []
    return []


def _how_to_go_on(depot: Depot | None, run: RunDirectory) -> str:
    saved = _saved(depot)
    if not saved:
        there = f", with a new --run-dir: {run.path} stays as it is" if run.path.exists() else ""
        return f"there is no checkpoint yet: start the run again{there}"
    return f"the checkpoint {saved[-1]} is whole. Continue with: {run.resume_command}"


def _test(trainer: Trainer) -> float:
    """The best model's perplexity on the test split. All workers call it at once. Raises Interrupted."""
    run, workers = trainer.run, trainer.workers
    # the leader's: another machine may see the directory as it was
    kept = KeptModel(run, "best")
    best = kept.load(trainer.config, trainer.store.manifest) if workers.leads else trainer.model.copied()
    best.to(trainer.device)
    with torch.no_grad():
        for parameter in best.parameters():
            workers.sum(parameter if workers.leads else parameter.zero_())
    try:
        return evaluate_split(trainer, best, "test").perplexity
    except Interrupted as error:
        way_on = f"Continue with: {run.resume_command}"
        raise Interrupted(f"stopped before the result was written. {way_on}") from error


def _result(trainer: Trainer, test: float | None, traffic: Traffic, recoveries: int | None) -> Result:
    """The figures of the run. test: the best model's perplexity on the test split, if it was asked for."""
    config, store, run, state = trainer.config, trainer.store, trainer.run, trainer.state
    assert state.best is not None  # an epoch has ended
    return Result(
        run=str(run.path),
        method=config.method.known_as,
        seed=config.run.seed,
        device=device_name(trainer.device),
        valid_perplexity=perplexity(state.best),
        test_perplexity=test,
        unigram_perplexity=store.manifest.unigram_perplexity["valid"],
        best_possible_perplexity=store.manifest.best_perplexity,
        best_epoch=state.best_epoch,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        seconds=state.seconds,
        steps=state.step,
        epochs=state.epoch - 1,
        workers=trainer.workers.count,
        boundary_bytes=traffic.exchange,
        carried_bytes=traffic.carried,
        gradient_bytes=traffic.gradient,
        waiting_neighbours=traffic.neighbours_s / trainer.workers.count / max(trainer.seconds, 1e-9),
        waiting_reduction=traffic.reduction_s / trainer.workers.count / max(trainer.seconds, 1e-9),
        recoveries=recoveries,
        train_perplexity=None if state.best_train is None else perplexity(state.best_train),
    )

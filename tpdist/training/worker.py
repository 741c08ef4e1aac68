"""One run on one worker, from a resolved configuration to `result.json`."""

from tpdist.config import Experiment
from tpdist.data import Store
from tpdist.errors import TpdistError
from tpdist.training.checkpoints import list_checkpoints, write_atomic, write_json
from tpdist.training.evaluation import evaluate_tokens
from tpdist.training.progress import Reporter, clock
from tpdist.training.result import Result
from tpdist.training.run_dir import RunDirectory
from tpdist.training.signals import StopSignal
from tpdist.training.trainer import Trainer


def run_worker(config: Experiment, store: Store, run: RunDirectory, reporter: Reporter, resume: bool) -> Result:
    """Train, or go on training, then evaluate the best model on the test split and write `result.json`.

    A new run that fails before its first checkpoint because of its input leaves no directory behind.
    """
    try:
        trainer = Trainer(config, store, run, reporter)
        if resume:
            trainer.resume()
        _announce(trainer, reporter)
    except TpdistError:
        if not resume and not list_checkpoints(run.checkpoints):
            run.discard()
        raise
    with StopSignal() as stop:
        fit = trainer.fit(stop)
    best = run.load_model(config, "best").to(trainer.device)
    test = evaluate_tokens(best, store.tokens("test"), config.objective.block)
    state = fit.state
    result = Result(
        run=str(run.path),
        method=config.method.name,
        seed=config.run.seed,
        device=trainer.device.type,
        valid_perplexity=fit.best_perplexity,
        test_perplexity=test.perplexity,
        unigram_perplexity=store.manifest.unigram_perplexity["valid"],
        best_possible_perplexity=store.manifest.best_perplexity,
        best_epoch=state.best_epoch,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        seconds=state.seconds,
        steps=state.step,
        epochs=state.epoch - 1,
    )
    write_atomic(run.result_file, lambda file: write_json(file, result.to_json()))
    _conclude(result, reporter)
    return result


def _announce(trainer: Trainer, reporter: Reporter) -> None:
    config, layout = trainer.config, trainer.batches.layout
    parameters = sum(p.numel() for p in trainer.model.parameters())
    reporter.say(f"run {trainer.run.path}")
    reporter.say(
        f"{layout.pairs:,} tokens, {len(trainer.store.vocabulary):,} types; {config.model.cell} {config.model.hidden}, "
        f"{parameters:,} parameters, {trainer.device.type}, {config.run.dtype}"
    )
    reporter.say(
        f"{config.method.name}: B={config.objective.block}, S={layout.streams}, K={trainer.batches.per_window}, "
        f"{len(trainer.batches)} windows an epoch; lambda {trainer.plan.terms.weight:g}, "
        f"{trainer.plan.h_steps} H-steps ({config.method.starts} starts), {trainer.plan.theta_steps} θ-steps"
        + (f", {trainer.plan.sweeps} costate sweeps" if trainer.plan.sweeps else "")
    )


def _conclude(result: Result, reporter: Reporter) -> None:
    reporter.say(
        f"validation perplexity {result.valid_perplexity:.2f} (unigram model {result.unigram_perplexity:.2f}), "
        f"test perplexity {result.test_perplexity:.2f}, best epoch {result.best_epoch}"
        + (f", best possible {result.best_possible_perplexity:.2f}" if result.best_possible_perplexity else "")
    )
    reporter.say(
        f"{result.steps} updates in {clock(result.seconds)}, {result.tokens_per_second:,.0f} tokens/s, {result.workers} "
        f"worker; results in {result.path / 'result.json'}"
    )

"""The lines that a run begins and ends with."""

from tpdist.config import unread
from tpdist.tprop import Plan, plan_epoch
from tpdist.training.progress import clock
from tpdist.training.result import Result
from tpdist.training.trainer import Trainer


def introduction(trainer: Trainer, device: str | None = None) -> list[str]:
    """The lines that a run begins with. device: of its workers, where they are elsewhere."""
    config, layout, place = trainer.config, trainer.batches.layout, trainer.workers.place
    plan = plan_epoch(config, trainer.state.epoch, trainer.batches.per_window)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    lines = [
        f"run {trainer.run.path}",
        f"{layout.pairs:,} tokens, {len(trainer.store.vocabulary):,} types; {config.model.cell} {config.model.hidden}"
        + (f" in {config.model.layers} layers" if config.model.layers > 1 else "")
        + f", {parameters:,} parameters, {device or trainer.device.type}, {config.run.dtype}",
        f"{config.method.known_as}: B={config.objective.block}, S={layout.streams}, "
        f"K={trainer.batches.per_window}, {len(trainer.batches)} windows an epoch; " + ", ".join(_steps(plan)),
    ]
    if trainer.workers.count > 1:
        lines.append(f"{trainer.workers.count} workers: {place.streams} along stream x {place.times} along time")
    if config.sweep is not None:
        lines.append("of the file's sweep: section nothing is run here; tpdist sweep runs it")
    return [*lines, *unread(config)]


def _steps(plan: Plan) -> list[str]:
    """λ and what a visit is made of, in words."""

    def count(number: int, what: str) -> str:
        return f"{number} {what}" + ("s" if number > 1 else "")

    starts = f" ({'held' if plan.held else 'tied'} starts)"
    h_steps = [count(plan.h_steps, "H-step") + starts] if plan.h_steps else []
    theta_steps = count(plan.theta_steps, "step") + " on H and θ" + starts if plan.joint else None
    sweeps = [count(plan.sweeps, "costate sweep")] if plan.sweeps else []
    return [f"λ {plan.terms.weight:g}", *h_steps, theta_steps or count(plan.theta_steps, "θ-step"), *sweeps]


def conclusion(result: Result) -> list[str]:
    """The lines that a run ends with."""
    lines = [
        f"validation perplexity {result.valid_perplexity:.2f} (unigram model {result.unigram_perplexity:.2f}), "
        + (f"test perplexity {result.test_perplexity:.2f}, " if result.test_perplexity is not None else "")
        + f"best epoch {result.best_epoch}"
        + (f", best possible {result.best_possible_perplexity:.2f}" if result.best_possible_perplexity else ""),
        f"{result.steps} updates in {clock(result.seconds)}, {result.tokens_per_second:,.0f} tokens/s, "
        f"{result.workers} worker{'s' if result.workers > 1 else ''}; results in {result.path / 'result.json'}",
    ]
    if result.workers > 1:
        lines.append(
            f"sent: {result.boundary_bytes:,} bytes of boundaries, {result.carried_bytes:,} of carried states, "
            f"{result.gradient_bytes:,} of gradients; waited {result.waiting_neighbours:.1%} of the time for "
            f"neighbours, {result.waiting_reduction:.1%} for the sum of gradients"
        )
    return lines

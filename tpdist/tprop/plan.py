"""What one visit of a window does: the configuration, resolved for one epoch."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tpdist.config import DUAL_METHODS, Experiment
from tpdist.errors import ConfigError
from tpdist.models import imported

CALLED_WITH = {
    "objective.penalty": ("target", "prediction"),
    "method.visit": ("model", "plan", "theta", "window", "begin", "boundaries", "carried", "neighbours"),
}
"""By key: how a function of the user's own is called, in this order."""
BINS = 64  # of residuals by place in the window, at most: a picture shows no more


@dataclass(frozen=True)
class Terms:
    """The constants of the objective (Eq. 6-8). `weight` is λ, in Eq. 7's units. own: the user's penalty, if any."""

    penalty: str
    weight: float
    kl_weight: float
    loss_on: str
    own: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def couples(self) -> bool:
        """Whether the objective reads the targets at all."""
        return self.weight > 0 or self.kl_weight > 0 or self.loss_on == "target"


@dataclass(frozen=True)
class HStep:
    """The optimiser of the targets."""

    name: str
    lr: float
    clip: float | None  # largest norm of the gradient of one boundary's state
    options: dict[str, Any]
    keep: bool  # keep its state from visit to visit
    bounded: bool  # what moves is z of h = tanh(z)


@dataclass(frozen=True)
class DualStep:
    """u ← u + α λ r."""

    lr: float  # α
    clip: float | None  # largest norm of λ r of one boundary
    before_theta: bool


@dataclass(frozen=True)
class Plan:
    """One visit: first values, `sweeps` costate sweeps, `h_steps`, `theta_steps` (joint: with H), duals."""

    terms: Terms
    first: str  # of the targets: zero, one-block, forward, persistent (`states.first_values`)
    relaxation: int  # sweeps h ← ĥ after persistent ones; in random order the blocks before a window that they reach
    shuffled: bool  # windows in random order, each from its stored state
    carry: bool  # a window starts where the one before it ended; else from 0
    held: bool  # H-steps leave a block's start where it was; else it follows its target
    h_steps: int
    theta_steps: int
    joint: bool  # every θ-step moves H too, along a gradient of the same pass
    h: HStep
    dual: DualStep | None  # None: no dual step in this epoch
    keep_duals: bool  # from visit to visit
    sweeps: int
    keep_costates: bool  # from visit to visit: the sweeps begin with them, not with 0
    edge_costate: bool  # a window ends with the costate that the last visit of the window behind left, not with 0
    edge_free: bool  # H-steps move the window's start too
    closing: bool  # one more target at the window's end
    chunk_blocks: int  # at most, that are worked on at once
    recompute: bool  # the targets, for the dual step of a visit in place
    blocks: int  # K, of a whole window
    als: bool  # `als_visit` in place of `visit`

    @property
    def moves_targets(self) -> bool:
        return self.joint or self.h_steps > 0

    @property
    def reach(self) -> int:
        """Blocks before a window in random order that stored states are brought through to its edge, if there are."""
        return self.relaxation if self.shuffled and self.carry else 0

    @property
    def stores_costates(self) -> bool:
        """Boundaries keep their costates from visit to visit."""
        return self.edge_costate or (self.keep_costates and self.sweeps > 0)

    @property
    def in_place(self) -> bool:
        """Whether a window that is all that a worker owns can be visited in place: Eq. 7, one H-step, one θ-step."""
        method = self.h_steps == 1 and self.theta_steps == 1 and not self.joint and not self.sweeps
        kept = self.first == "persistent" and not self.shuffled and not self.h.bounded and not self.closing
        duals = self.dual is None or (self.keep_duals and not self.dual.before_theta)
        return method and kept and duals and self.terms.penalty == "l2" and self.terms.loss_on == "prediction"

    @property
    def places(self) -> int:
        """Constraints of a stream in a whole window, boundaries 1 … K-1 and a closing one; 1 where there is none."""
        return max(1, self.blocks - 1 + self.closing)

    @property
    def per_bin(self) -> int:
        """Neighbouring places that share a bin: the same number in all, but for the last bin."""
        return -(-self.places // BINS)

    @property
    def bins(self) -> int:
        return -(-self.places // self.per_bin)

    @property
    def loss_alone(self) -> Terms:
        """The objective without the penalty."""
        return replace(self.terms, weight=0.0, kl_weight=0.0)

    @property
    def stores_states(self) -> bool:
        """Blocks own their states from visit to visit."""
        return self.first == "persistent" or self.shuffled


def own_function(path: str | None, key: str) -> Callable[..., Any] | None:
    """The user's function at `package.module:function`; None where the path is that of none.

    Raises ConfigError about `key`, a key of CALLED_WITH, where it cannot be loaded or called.
    """
    if path is None or ":" not in path:
        return None
    found = imported(path, key)
    if not callable(found):
        raise ConfigError(f"{path!r} is not a function", key)
    try:
        signature = inspect.signature(found)
    except ValueError:
        return found  # some that are written in C do not tell
    try:
        signature.bind(*CALLED_WITH[key])
    except TypeError as error:
        wanted = ", ".join(CALLED_WITH[key])
        raise ConfigError(f"{path!r} takes {signature}; it must take ({wanted})", key) from error
    return found


def plan_epoch(config: Experiment, epoch: int, blocks: int) -> Plan:
    """The plan of epoch 1, 2, … for windows of at most `blocks` blocks.

    Raises ConfigError with the key where an own penalty cannot be loaded.
    """
    method, objective = config.method, config.objective
    growth = objective.weight_growth ** (epoch - 1) if objective.weight or objective.kl_weight else 1.0
    weight = objective.weight * growth
    kl_weight = weight if objective.kl_weight is None else objective.kl_weight * growth
    has_duals = method.name in DUAL_METHODS
    # a dual that is zeroed at every window and stepped last is never read
    has_dual_step = (
        has_duals and epoch >= method.dual.start_epoch and (method.dual.keep or method.dual.order == "before")
    )
    sweeps = 0
    if method.name == "costate":
        sweeps = blocks - 1 if method.sweeps is None else method.sweeps
    default_lr = 1 / weight if weight else 1.0  # a dual step is u ← u + r, an H-step with held starts a costate sweep
    return Plan(
        terms=Terms(
            objective.penalty,
            weight,
            kl_weight,
            objective.loss_on,
            own_function(objective.penalty, "objective.penalty"),
        ),
        first=method.first,
        relaxation=method.relaxation,
        shuffled=config.batching.order == "shuffled",
        carry=method.edge == "carry",
        held=method.starts == "held",
        h_steps=method.h_steps,
        theta_steps=method.theta_steps,
        joint=method.name == "alm",
        h=HStep(
            method.h_optimizer.name,
            method.h_optimizer.lr or default_lr,
            method.h_optimizer.clip,
            dict(method.h_optimizer.options),
            keep=method.first == "persistent",
            bounded=method.bounded,
        ),
        dual=DualStep(method.dual.lr or default_lr, method.dual.clip, method.dual.order == "before")
        if has_dual_step
        else None,
        keep_duals=has_duals and method.dual.keep,
        sweeps=sweeps,
        keep_costates=method.keep_costates,
        edge_costate=method.name == "costate" and method.edge_costate == "kept",
        edge_free=method.edge_free,
        closing=method.closing,
        chunk_blocks=max(1, config.batching.chunk_tokens // objective.block),
        recompute=config.batching.recompute,
        blocks=blocks,
        als=method.name == "als",
    )

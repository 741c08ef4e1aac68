"""Gradient steps on the targets H (Section 3, step 1), with two copies of a boundary.

A boundary's value is the target of the block before it and the start of the block after it. `starts: tied`
moves both, as the paper does; `starts: held` moves the target alone, and then one plain step of size 1/λ is
one costate sweep (tests/tprop/test_costate.py).

Shape letters: `window.py`.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.objective import Pass, blocks_pass, frozen, target_gradient
from tpdist.tprop.optimizers import build_optimizer, put_state, state_of
from tpdist.tprop.plan import HStep, Plan
from tpdist.tprop.prediction import at_boundaries
from tpdist.tprop.rollout import RollOut
from tpdist.tprop.states import Boundaries
from tpdist.tprop.window import Neighbours, Window, nothing

INSIDE = 1 - 1e-6  # |h| at most, where z of h = tanh(z) must be finite


class Targets:
    """The targets of one window while H-steps move them, and their optimiser. `h`: [S, k+1, d].

    closing: boundary k is a closing target, whose state is kept too.
    """

    def __init__(
        self, spec: HStep, h: Tensor, movable: Tensor, boundaries: Boundaries, begin: int, closing: bool = False
    ):
        self.h = h
        self._spec = spec
        self._movable = movable[..., None]
        self._boundaries = boundaries
        self._begin, self._kept = begin, h.shape[1] - 1 + closing
        self._here = slice(begin, begin + self._kept)  # of what is kept in the boundaries
        free = torch.atanh(h.clamp(-INSIDE, INSIDE)) if spec.bounded else h
        self._free = torch.nn.Parameter(free.clone())  # what the optimiser moves: h, or z of h = tanh(z)
        self._optimizer = build_optimizer(spec, [self._free], "method.h_optimizer")
        if spec.keep:
            self._load()

    def step(self, gradient: Tensor) -> None:
        """One optimiser step along `gradient` [S, k+1, d], where boundaries may move.

        The clip is per boundary, so it does not depend on how many there are or who holds them.
        """
        with torch.no_grad():
            if self._spec.bounded:
                gradient = gradient * (1 - self._free.tanh().square())
            gradient = clip_rows(gradient, self._spec.clip)
            self._free.grad = gradient.where(self._movable, 0)
            self._optimizer.step()
            self._free.grad = None
            moved = self._free.tanh() if self._spec.bounded else self._free
            self.h = moved.where(self._movable, self.h)

    def save(self) -> None:
        """Leave the optimiser's state in the boundaries, for the next visit."""
        if not self._spec.keep:
            return
        boundaries = self._boundaries
        moments, boundaries.h_counts[self._begin] = state_of(self._optimizer, self._free)
        for name, value in moments.items():
            if name not in boundaries.h_moments:
                assert boundaries.h is not None
                boundaries.h_moments[name] = torch.zeros_like(boundaries.h)
            boundaries.h_moments[name][:, self._here] = value[:, : self._kept]

    def _load(self) -> None:
        counts = self._boundaries.h_counts.get(self._begin)
        if counts is None:
            return
        moments = {name: torch.zeros_like(self.h) for name in self._boundaries.h_moments}
        for name, moment in self._boundaries.h_moments.items():
            moments[name][:, : self._kept] = moment[:, self._here]
        put_state(self._optimizer, self._free, moments, counts)


def h_step(
    model: LanguageModel,
    plan: Plan,
    window: Window,
    start: Tensor,
    targets: Targets,
    dual: Tensor,
    neighbours: Neighbours,
    rolled: RollOut | None,
    arrive: Callable[[], None],
) -> Tensor:
    """Minimise Eq. 7 with respect to H by one step. start [S, k, d], dual [S, k+1, d]; moves `targets`.

    arrive: fills boundary k of the targets and of `dual`. -> ĥ [S, k, d] before it.
    """
    with frozen(model) if rolled is None else nullcontext():
        result = blocks_pass(
            model, plan.terms, window, start, targets.h, dual, plan.chunk_blocks, to_start=True, rolled=rolled,
            neighbours=neighbours, arrive=arrive,
        )  # fmt: skip
        targets.step(h_gradient(model, plan, window, targets.h, dual, result))
    return result.predictions


def ask_right(plan: Plan, window: Window, h: Tensor, dual: Tensor, neighbours: Neighbours) -> Callable[[], None]:
    """Send h of boundary 0 to the left, and u if the method has duals; what is returned fills boundary k.

    h, dual [S, k+1, d]. Where λ = 0 the objective does not read them; the primal residual does.
    """
    if not window.constrained:
        return nothing
    values = (h, dual) if plan.keep_duals or plan.dual else (h,)
    arrival = neighbours.to_left(torch.stack([x[:, 0] for x in values]))

    def arrive() -> None:
        edges = arrival()
        if edges is not None:
            for x, edge in zip(values, edges, strict=True):
                x[:, -1] = edge

    return arrive


def h_gradient(model: LanguageModel, plan: Plan, window: Window, target: Tensor, dual: Tensor, result: Pass) -> Tensor:
    """∂L/∂h [S, k+1, d]: what a boundary is as a start, and as a target, once the left neighbour's ĥ has arrived."""
    assert result.start_gradient is not None
    prediction = at_boundaries(result.predictions, result.from_left())
    gradient = target_gradient(model, plan.terms, window, target, prediction, dual, plan.chunk_blocks)
    gradient[:, :-1] += result.start_gradient
    return gradient


def dual_ascent(plan: Plan, residual: Tensor, coupled: Tensor) -> Tensor:
    """α λ r, by which a dual step moves u: residual h - ĥ [..., d] with a fresh ĥ, coupled [...] -> [..., d]."""
    assert plan.dual is not None
    gradient = plan.terms.weight * residual
    gradient *= coupled[..., None]
    return clip_rows(gradient, plan.dual.clip).mul_(plan.dual.lr)


def clip_rows(gradient: Tensor, largest: float | None) -> Tensor:
    """Scale each state's gradient [..., d] to a norm of at most `largest`."""
    if largest is None:
        return gradient
    norm = gradient.norm(dim=-1, keepdim=True)
    return gradient * (largest / norm.clamp(min=largest))

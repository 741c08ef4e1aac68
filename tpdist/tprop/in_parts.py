"""What visits in place are made of: first values, H's optimiser and the dual step, a part at a time.

Shape letters: `window.py`.
"""

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.h_steps import clip_rows, dual_ascent
from tpdist.tprop.optimizers import build_optimizer, put_state, state_of
from tpdist.tprop.outcome import by_place
from tpdist.tprop.parts import Part
from tpdist.tprop.plan import Plan
from tpdist.tprop.prediction import predict_across
from tpdist.tprop.states import Boundaries, edge_state
from tpdist.tprop.window import Neighbours, Window


def first_values_in_place(
    model: LanguageModel,
    plan: Plan,
    window: Window,
    boundaries: Boundaries,
    carried: Tensor,
    neighbours: Neighbours,
) -> tuple[Tensor, Tensor]:
    """h with its first values, as `states.first_values` has them, and u or 0: [S, k+1, d], where they are kept."""
    h = boundaries.h
    assert h is not None
    if neighbours.is_first:
        h[:, 0] = edge_state(model, plan, window, 0, boundaries, carried)
    _relax(model, plan, window, h, neighbours)
    return h, h.new_zeros(()).expand_as(h) if boundaries.u is None else boundaries.u


def sums(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Zeros, to which Σ ‖h - ĥ‖² by place [bins] and Σ ‖Δĥ‖² [] are added, in float64."""
    zero = torch.zeros(plan.bins, dtype=torch.float64, device=device)
    return zero, zero.sum()


def squares(residual: Tensor, coupled: Tensor) -> Tensor:
    """‖r‖² of each boundary, 0 where there is no constraint: residual r [..., d], coupled [...] of 0 and 1 -> [...]."""
    return residual.square().sum(-1) * coupled


def shifted(left: Tensor, predictions: Tensor) -> Tensor:
    """ĥ of blocks [S, m, d] as ĥ where the blocks begin; left [S, d]: that of the block before them."""
    return torch.cat([left[:, None], predictions[:, :-1]], 1)


def _relax(model: LanguageModel, plan: Plan, window: Window, h: Tensor, neighbours: Neighbours) -> None:
    """`relaxation` sweeps h_i ← ĥ_i, [S, k+1, d]. A part's last ĥ waits until the part that starts there is rolled."""
    k = window.blocks
    count = k - 1 if neighbours.is_last else k  # nobody reads the prediction of the window's last block
    rolled: set[tuple[int, int]] = set()
    waiting: dict[tuple[int, int], Tensor] = {}

    def write(part: Part, prediction: Tensor, _: Tensor | None) -> None:
        stream, begin, end = part.streams.start, part.blocks.start, part.blocks.stop
        values = part.shaped(prediction)
        h[part.streams, begin + 1 : end] = values[:, :-1]
        rolled.add((stream, begin))
        if (stream, begin) in waiting:
            h[part.streams, begin] = waiting.pop((stream, begin))
        if (stream, end) in rolled:
            h[part.streams, end] = values[:, -1]
        elif end < k:
            waiting[stream, end] = values[:, -1].clone()

    for _ in range(plan.relaxation):
        rolled.clear()
        inputs = window.inputs[:, :, :count]
        _, arrival = predict_across(model, inputs, h[:, :count], plan.chunk_blocks, neighbours, write)
        for (stream, boundary), value in waiting.items():  # the last block's start, which no part was rolled out from
            h[stream : stream + len(value), boundary] = value
        waiting.clear()
        from_left = arrival()
        if from_left is not None:
            h[:, 0] = from_left
    h[:, k] = 0


class Moments:
    """H-steps on part after part of the targets, with the optimiser's moments where they are kept."""

    def __init__(self, plan: Plan, window: Window, boundaries: Boundaries):
        self._spec, self._boundaries = plan.h, boundaries
        self._weight, self._window = plan.terms.weight, window
        self._before = boundaries.h_counts.get(0)
        self._after: dict[str, float] = {}

    def step(
        self,
        target: Tensor,
        dual: Tensor,
        here: tuple[slice, slice],
        prediction: Tensor,
        as_start: Tensor,
        remember: bool = True,
    ) -> Tensor:
        """target[here] moved, as `Targets.step` does: [S, m, d].

        prediction: ĥ there. as_start: the gradient with respect to the starts there. Both [S, m, d]. remember: whether
        the moments change; if not, the same step can be taken again.
        """
        with_dual = target[here] - prediction + dual[here]
        gradient = self._weight * with_dual * self._window.coupled[here][..., None] + as_start
        movable = self._window.movable[here][..., None]
        values = target[here]
        moved = torch.nn.Parameter(values.clone())
        optimizer = build_optimizer(self._spec, [moved], "method.h_optimizer")
        if self._before is not None:
            kept = {name: moment[here] for name, moment in self._boundaries.h_moments.items()}
            kept = kept if remember else {name: moment.clone() for name, moment in kept.items()}
            put_state(optimizer, moved, kept, self._before)
        moved.grad = clip_rows(gradient, self._spec.clip).where(movable, 0)
        optimizer.step()
        if remember:
            moments, self._after = state_of(optimizer, moved)
            self._remember(moments, here, target)
        return moved.detach().where(movable, values)

    def _remember(self, moments: dict[str, Tensor], here: tuple[slice, slice], like: Tensor) -> None:
        stored = self._boundaries.h_moments
        for name, value in moments.items():
            if name not in stored:
                stored[name] = torch.zeros_like(like)
            kept = stored[name][here]
            if kept.data_ptr() != value.data_ptr():
                kept.copy_(value)

    def keep(self) -> None:
        """Leave the scalars in the boundaries, for the next visit."""
        self._boundaries.h_counts[0] = self._after


def dual_step(
    model: LanguageModel,
    plan: Plan,
    window: Window,
    start: Tensor,
    target: Tensor,
    dual: Tensor,
    before: Tensor | LanguageModel,
    neighbours: Neighbours,
) -> tuple[Tensor, Tensor]:
    """u ← u + α λ (h - ĥ) with a fresh ĥ, in place. -> Σ ‖h - ĥ‖² by place, Σ ‖Δĥ‖².

    before: the visit's first ĥ [S, k, d], or the model as it was, which makes them again from starts that stayed.
    """
    residuals, change = sums(plan, start.device)
    own = target.shape[1] - (0 if neighbours.is_last else 1)  # boundary k is the right neighbour's

    def move(streams: slice, boundaries: slice, prediction: Tensor) -> None:
        nonlocal residuals
        here = (streams, slice(boundaries.start, min(boundaries.stop, own)))
        coupled = window.coupled[here]
        residual = target[here] - prediction[:, : coupled.shape[1]]
        residuals += by_place(plan, squares(residual, coupled), window.offset + here[1].start)
        dual[here] += dual_ascent(plan, residual, coupled)

    def take(part: Part, prediction: Tensor, _: Tensor | None) -> None:
        nonlocal change
        if isinstance(before, Tensor):
            was = part.of(before)
        else:
            was = before.unroll(part.tokens(window.inputs), part.of(start))[1]
        change += squares(prediction - was, part.right(window.coupled)).sum()
        move(part.streams, slice(part.blocks.start + 1, part.blocks.stop + 1), part.shaped(prediction))

    _, arrival = predict_across(model, window.inputs, start, plan.chunk_blocks, neighbours, take)
    from_left = arrival()
    if from_left is not None:
        move(slice(None), slice(0, 1), from_left[:, None])
    return residuals, change

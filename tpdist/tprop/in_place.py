"""A visit of a window that is all that a worker owns, in place and a part at a time: `pm` and `admm` in batch mode.

`visit` makes some 14 tensors over all boundaries, which is nothing where windows are short. Here a part's states,
moments and duals are changed where they are kept as soon as nobody reads the old ones. What is made over all boundaries
is one tensor: with starts held the targets, with starts tied the first predictions, for the dual residual.

The oracle is that of `visit` (tests/tprop/test_in_place.py). Shape letters: `window.py`.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.h_steps import ask_right, clip_rows
from tpdist.tprop.objective import blocks_pass, frozen, predict_across
from tpdist.tprop.optimizers import build_optimizer
from tpdist.tprop.outcome import Outcome, by_place
from tpdist.tprop.parts import Part
from tpdist.tprop.plan import DualStep, Plan
from tpdist.tprop.states import Boundaries, edge_state
from tpdist.tprop.theta import BlowUpError, Theta
from tpdist.tprop.window import Neighbours, Window


def works_in_place(plan: Plan, window: Window, begin: int, boundaries: Boundaries) -> bool:
    """Whether this visit is one of those: more blocks than fit into a chunk, and Eq. 7 with one H-step and θ-step."""
    method = plan.h_steps == 1 and plan.theta_steps == 1 and not plan.joint and not plan.sweeps
    kept = plan.first == "persistent" and not plan.shuffled and not plan.h.bounded and not plan.closing
    duals = plan.dual is None or (boundaries.u is not None and not plan.dual.before_theta)
    eq7 = plan.terms.penalty == "l2" and plan.terms.loss_on == "prediction" and window.constrained
    k, h = window.blocks, boundaries.h
    whole = h is not None and begin == 0 and 1 < k == h.shape[1] - 1 and window.earlier.shape[2] == 0
    return method and kept and duals and eq7 and whole and window.inputs.shape[1] * k > plan.chunk_blocks


def visit_in_place(
    model: LanguageModel,
    plan: Plan,
    theta: Theta,
    window: Window,
    boundaries: Boundaries,
    carried: Tensor,
    neighbours: Neighbours,
) -> Outcome:
    """As `visit`. After a BlowUpError H has moved and U has not."""
    assert boundaries.h is not None
    k, h = window.blocks, boundaries.h
    if neighbours.is_first:
        h[:, 0] = edge_state(model, plan, window, 0, boundaries, carried)
    _relax(model, plan, window, h, neighbours)
    start = h[:, :k]
    target = h.clone() if plan.held else h
    dual = h.new_zeros(()).expand_as(h) if boundaries.u is None else boundaries.u
    first = None if plan.held else torch.empty_like(start)

    arrive = ask_right(plan, window, target, dual, neighbours)
    _h_step(model, plan, window, start, target, dual, boundaries, first, neighbours, arrive)

    arrive = ask_right(plan, window, target, dual, neighbours)
    theta.begin(window.inputs, window.tokens)
    gaps, change = _sums(plan, h.device)

    def compare(part: Part, prediction: Tensor, _: Tensor | None) -> None:
        nonlocal gaps, change
        if plan.dual is None:
            coupled = part.right(window.coupled)
            squares = part.shaped(_squares(part.right(target) - prediction, coupled)[:, None])[..., 0]
            gaps += by_place(plan, squares, window.offset + part.blocks.start + 1)
            if first is not None:  # with starts held, nothing that the predictions follow from has moved
                change += _squares(prediction - part.of(first), coupled).sum()

    result = blocks_pass(
        model, plan.terms, window, start, target, dual, plan.chunk_blocks, to_theta=True, arrive=arrive,
        before_last=theta.last_pass, each=compare,
    )  # fmt: skip
    states = {"start": start, "target": target, "dual": dual} | ({"first": h} if plan.held else {})
    before = copy.deepcopy(model) if first is None and plan.dual is not None else first
    try:
        theta.step(window.tokens)
    except BlowUpError as error:
        error.states = states
        raise
    if plan.dual is not None:
        assert before is not None
        gaps, change = _dual_step(model, plan, plan.dual, window, start, target, dual, before, neighbours)
    if boundaries.u is not None:
        boundaries.u[:, k] = 0
    h[:, k] = 0
    return Outcome(
        loss=result.loss,
        penalty=result.penalty,
        gaps=gaps,
        dual=plan.terms.weight**2 * change,
        carry=neighbours.around(result.predictions[:, -1]),
        states=states,
    )


def _sums(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """For Σ ‖h - ĥ‖² by place, and Σ ‖Δĥ‖²."""
    zero = torch.zeros(plan.bins, dtype=torch.float64, device=device)
    return zero, zero.sum()


def _squares(gap: Tensor, coupled: Tensor) -> Tensor:
    return gap.square().sum(-1) * coupled


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


def _h_step(
    model: LanguageModel,
    plan: Plan,
    window: Window,
    start: Tensor,
    target: Tensor,
    dual: Tensor,
    boundaries: Boundaries,
    first: Tensor | None,
    neighbours: Neighbours,
    arrive: Callable[[], None],
) -> None:
    """One step on the targets [S, k+1, d], each part as soon as the ĥ at its first boundary is known. Fills `first`."""
    edges: dict[tuple[int, int], Tensor] = {}  # ĥ where a part ends, by stream and boundary
    waiting: list[tuple[Part, Tensor, Tensor]] = []
    moments = Moments(plan, boundaries)

    def move(part: Part, values: Tensor, gradient: Tensor) -> None:
        """values, gradient [streams, blocks, d]: ĥ at the right boundaries, the gradient with respect to the starts."""
        left = edges.pop((part.streams.start, part.blocks.start))
        prediction = torch.cat([left[:, None], values[:, :-1]], 1)
        here = (part.streams, part.blocks)
        residual = target[here] - prediction + dual[here]
        gradient = plan.terms.weight * residual * window.coupled[here][..., None] + gradient
        moments.step(target, here, gradient, window.movable[here][..., None])

    def take(part: Part, prediction: Tensor, gradient: Tensor | None) -> None:
        assert gradient is not None
        if first is not None:
            part.put(first, prediction)
        stream, begin, values = part.streams.start, part.blocks.start, part.shaped(prediction)
        edges[stream, part.blocks.stop] = values[:, -1].clone()
        if begin == 0 and neighbours.is_first:
            edges[stream, 0] = torch.zeros_like(values[:, 0])
        waiting.append((part, values, part.shaped(gradient)))
        move_those_known()

    def move_those_known() -> None:
        for item in list(waiting):
            if (item[0].streams.start, item[0].blocks.start) in edges:
                waiting.remove(item)
                move(*item)

    with frozen(model):
        result = blocks_pass(
            model, plan.terms, window, start, target, dual, plan.chunk_blocks, to_start=True, neighbours=neighbours,
            arrive=arrive, each=take,
        )  # fmt: skip
    from_left = result.from_left()
    if from_left is not None:
        edges.update(
            {(part.streams.start, 0): from_left[part.streams] for part, *_ in waiting if not part.blocks.start}
        )
    move_those_known()
    moments.keep()


class Moments:
    """The optimiser of H, a part at a time, on the moments where they are kept."""

    def __init__(self, plan: Plan, boundaries: Boundaries):
        self._spec, self._own = plan.h, boundaries
        self._before = boundaries.h_counts.get(0)
        self._after: dict[str, float] = {}

    def step(self, target: Tensor, here: tuple[slice, slice], gradient: Tensor, movable: Tensor) -> None:
        """Move target[here] along `gradient` where `movable`; as `Targets.step`."""
        own, values = self._own, target[here]
        moved = torch.nn.Parameter(values.clone())
        optimizer = build_optimizer(self._spec, self._spec.lr, [moved], "method.h_optimizer")
        state = optimizer.state[moved]
        if self._before is not None:
            state |= {name: torch.tensor(count) for name, count in self._before.items()}
            state |= {name: moment[here] for name, moment in own.h_moments.items()}
        moved.grad = clip_rows(gradient, self._spec.clip).where(movable, 0)
        optimizer.step()
        values.copy_(moved.detach().where(movable, values))
        for name, value in optimizer.state[moved].items():
            if isinstance(value, Tensor) and value.shape == moved.shape:
                if name not in own.h_moments:
                    own.h_moments[name] = torch.zeros_like(target)
                kept = own.h_moments[name][here]
                if kept.data_ptr() != value.data_ptr():
                    kept.copy_(value)
            elif value is not None:
                self._after[name] = float(value)

    def keep(self) -> None:
        """Leave the scalars in the boundaries, for the next visit."""
        self._own.h_counts[0] = self._after


def _dual_step(
    model: LanguageModel,
    plan: Plan,
    step: DualStep,
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
    gaps, change = _sums(plan, start.device)
    own = target.shape[1] - (0 if neighbours.is_last else 1)  # boundary k is the right neighbour's

    def move(streams: slice, boundaries: slice, prediction: Tensor) -> None:
        nonlocal gaps
        here = (streams, slice(boundaries.start, min(boundaries.stop, own)))
        coupled = window.coupled[here]
        gap = target[here] - prediction[:, : coupled.shape[1]]
        gaps += by_place(plan, _squares(gap, coupled), window.offset + here[1].start)
        dual[here] += step.lr * clip_rows(plan.terms.weight * gap * coupled[..., None], step.clip)

    def take(part: Part, prediction: Tensor, _: Tensor | None) -> None:
        nonlocal change
        if isinstance(before, Tensor):
            was = part.of(before)
        else:
            was = before.unroll(part.tokens(window.inputs), part.of(start))[1]
        change += _squares(prediction - was, part.right(window.coupled)).sum()
        move(part.streams, slice(part.blocks.start + 1, part.blocks.stop + 1), part.shaped(prediction))

    _, arrival = predict_across(model, window.inputs, start, plan.chunk_blocks, neighbours, take)
    from_left = arrival()
    if from_left is not None:
        move(slice(None), slice(0, 1), from_left[:, None])
    return gaps, change

"""A visit in place with starts held: one roll-out of a part serves its H-step and its θ-gradient.

Starts that stay let both differentiate the same forward pass (`rollout.py`), so the head, which costs most, is passed
once. A part's θ-gradient reads the target at its right end, whose H-step wants a gradient of the part to the right
and this part's own ĥ; so parts follow each other from right to left.

With neighbours the block at either edge is a part of its own. That on the right is rolled out first, for its ĥ, and
ends last, when the right neighbour's moved target has come; that on the left has its H-step early, for the left
neighbour.

What is made over all boundaries is one tensor, the targets, which the dual step reads after θ has moved. The oracle is
that of `visit` (tests/tprop/test_in_place.py). Shape letters: `window.py`.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.h_steps import ask_right
from tpdist.tprop.in_parts import Moments, dual_step, relax, squares, sums
from tpdist.tprop.objective import Pass, blocks_pass
from tpdist.tprop.outcome import Outcome, by_place
from tpdist.tprop.parts import Part, from_right_to_left
from tpdist.tprop.plan import Plan
from tpdist.tprop.rollout import RollOut
from tpdist.tprop.states import Boundaries, edge_state
from tpdist.tprop.theta import BlowUpError, Theta
from tpdist.tprop.window import Neighbours, Window


def visit_held_in_place(
    model: LanguageModel,
    plan: Plan,
    theta: Theta,
    window: Window,
    boundaries: Boundaries,
    carried: Tensor,
    neighbours: Neighbours,
) -> Outcome:
    """As `visit`. After a BlowUpError H has been relaxed and U has not moved."""
    assert boundaries.h is not None
    k, h = window.blocks, boundaries.h
    if neighbours.is_first:
        h[:, 0] = edge_state(model, plan, window, 0, boundaries, carried)
    relax(model, plan, window, h, neighbours)
    target = h.clone()
    dual = h.new_zeros(()).expand_as(h) if boundaries.u is None else boundaries.u

    moments = Moments(plan, window, boundaries)
    sweep = _Sweep(model, plan, window, h, target, dual, moments)
    sweep.run(theta, neighbours)
    moments.keep()
    states = {"first": h, "start": h[:, :k], "target": target, "dual": dual}
    before = copy.deepcopy(model) if plan.dual else None
    try:
        theta.step(window.tokens)
    except BlowUpError as error:
        error.states = states
        raise
    gaps, change = sweep.gaps, sums(plan, h.device)[1]  # without a dual step nothing moves that ĥ follows from
    if plan.dual is not None:
        assert before is not None
        gaps, change = dual_step(model, plan, plan.dual, window, h[:, :k], target, dual, before, neighbours)
    if boundaries.u is not None:
        boundaries.u[:, k] = 0
    h[:, k] = 0
    return Outcome(
        loss=sweep.loss,
        penalty=sweep.penalty,
        gaps=gaps,
        dual=plan.terms.weight**2 * change,
        carry=neighbours.around(sweep.last),
        states=states,
    )


@dataclass
class _Opened:
    """A part rolled out. gradient: of Eq. 7 with respect to its starts [S, m, d], once it has been pulled."""

    part: Part
    window: Window
    rolled: RollOut
    prediction: Tensor
    gradient: Tensor | None = None


class _Sweep:
    """The H-step and the θ-gradient of all parts; `target` [S, k+1, d] moves. loss, penalty, gaps: as `Outcome`'s.

    last: ĥ [S, d] of the last block.
    """

    def __init__(
        self,
        model: LanguageModel,
        plan: Plan,
        window: Window,
        h: Tensor,
        target: Tensor,
        dual: Tensor,
        moments: Moments,
    ):
        self.last = torch.zeros_like(h[:, 0])
        self.loss = self.penalty = h.new_zeros((), dtype=torch.float64)
        self.gaps, _ = sums(plan, h.device)
        self._model, self._plan, self._window, self._h = model, plan, window, h
        self._target, self._dual, self._moments = target, dual, moments
        self._as_start: dict[
            tuple[int, int], Tensor
        ] = {}  # the gradient [S, 1, d] where a part begins, till it is read

    def run(self, theta: Theta, neighbours: Neighbours) -> None:
        """Calls of neighbours and of the sum of gradients follow each other as in `visit`, which others may take."""
        S, k, plan, window = self._h.shape[0], self._window.blocks, self._plan, self._window
        edges = (not neighbours.is_first, not neighbours.is_last)
        parts = from_right_to_left(S, k, plan.chunk_blocks, edges)
        apart = [part for part in parts if edges[0] and part.blocks.start == 0]
        ends = [part for part in parts if edges[1] and part.blocks.stop == k]

        arrive = ask_right(plan, window, self._h, self._dual, neighbours)
        right = [self._open(part) for part in ends]
        from_left = neighbours.to_right(self.last)
        left = [self._pull(self._open(part)) for part in apart]
        arrive()
        for opened in right:
            self._pull(opened)
        edge = from_left()
        if edge is not None:
            self._move_first(edge)
        arrive = ask_right(plan, window, self._target, self._dual, neighbours)
        theta.begin(window.inputs, window.tokens)

        def close(opened: _Opened, last: bool) -> None:
            if last:
                theta.last_pass()
            self._close(opened)

        inside = [part for part in parts if part not in apart and part not in ends]
        for part in inside:
            close(self._pull(self._open(part)), not left and not right and part is inside[-1])
        for opened in left:
            close(opened, not right and opened is left[-1])
        arrive()
        for opened in right:
            close(opened, opened is right[-1])
        if neighbours.is_first:
            self._move_first(torch.zeros_like(self.last))

    def _open(self, part: Part) -> _Opened:
        window, start = part.window(self._window), self._h[part.streams, part.blocks]
        rolled = RollOut(self._model, self._plan.terms, window, start)
        opened = _Opened(part, window, rolled, rolled.prediction.detach().view(start.shape))
        if part.blocks.stop == self._window.blocks:
            self.last[part.streams] = opened.prediction[:, -1]
        return opened

    def _pass(self, opened: _Opened, target: Tensor, to_theta: bool) -> Pass:
        streams, blocks = opened.part.streams, opened.part.blocks
        touched = (streams, slice(blocks.start, blocks.stop + 1))
        return blocks_pass(
            self._model, self._plan.terms, opened.window, self._h[streams, blocks], target[touched],
            self._dual[touched], self._plan.chunk_blocks, to_start=not to_theta, to_theta=to_theta,
            rolled=opened.rolled,
        )  # fmt: skip

    def _pull(self, opened: _Opened) -> _Opened:
        opened.gradient = self._pass(opened, self._h, to_theta=False).start_gradient
        assert opened.gradient is not None
        self._as_start[opened.part.streams.start, opened.part.blocks.start] = opened.gradient[:, :1]
        return opened

    def _close(self, opened: _Opened) -> None:
        """Move the targets at the blocks' right ends, then add to the θ-gradient."""
        part, gradient = opened.part, opened.gradient
        assert gradient is not None
        after = self._as_start.pop((part.streams.start, part.blocks.stop), None)
        gradient = gradient[:, 1:] if after is None else torch.cat([gradient[:, 1:], after], 1)
        if count := gradient.shape[1]:
            here = (part.streams, slice(part.blocks.start + 1, part.blocks.start + 1 + count))
            self._moments.step(self._target, self._dual, here, opened.prediction[:, :count], gradient)
        result = self._pass(opened, self._target, to_theta=True)
        self.loss, self.penalty = self.loss + result.loss, self.penalty + result.penalty
        if self._plan.dual is None:
            right = (part.streams, slice(part.blocks.start + 1, part.blocks.stop + 1))
            apart = squares(self._target[right] - opened.prediction, self._window.coupled[right])
            self.gaps += by_place(self._plan, apart, self._window.offset + right[1].start)

    def _move_first(self, prediction: Tensor) -> None:
        """The H-step at boundary 0, whose ĥ [S, d] the left neighbour has."""
        for stream, boundary in list(self._as_start):
            if boundary == 0:
                gradient = self._as_start.pop((stream, 0))
                here = (slice(stream, stream + len(gradient)), slice(0, 1))
                self._moments.step(self._target, self._dual, here, prediction[here[0], None], gradient)

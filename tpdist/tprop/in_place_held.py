"""A visit in place with starts held: one roll-out of a part serves its H-step and its θ-gradient.

Starts that stay let both differentiate the same forward pass (`rollout.py`), so the head, which costs most, is passed
once. A part's θ-gradient reads the target at its right end, whose H-step wants a gradient of the part to the right
and this part's own ĥ; so parts follow each other from right to left.

With neighbours the block at either edge is a part of its own. That on the right is rolled out first, for its ĥ, and
ends last, when the right neighbour's moved target has come; that on the left has its H-step early, for the left
neighbour.

What is made over all boundaries is one tensor, the targets, which the dual step reads after θ has moved; with
`batching.recompute` nothing is, and it works them out again. The oracle is that of `visit`
(tests/tprop/test_in_place.py). Shape letters: `window.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.h_steps import ask_right, dual_ascent
from tpdist.tprop.in_parts import Moments, dual_step, first_values_in_place, shifted, squares, sums
from tpdist.tprop.objective import Pass, blocks_pass, frozen
from tpdist.tprop.outcome import Outcome, by_place
from tpdist.tprop.parts import Part, from_right_to_left
from tpdist.tprop.plan import Plan
from tpdist.tprop.prediction import predict
from tpdist.tprop.rollout import RollOut
from tpdist.tprop.states import Boundaries
from tpdist.tprop.theta import Theta
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
    k = window.blocks
    h, dual = first_values_in_place(model, plan, window, boundaries, carried, neighbours)
    target = torch.empty_like(h) if plan.dual and not plan.recompute else None

    moments = Moments(plan, window, boundaries)
    parts = _RightToLeft(model, plan, window, h, target, dual, moments)
    parts.run(theta, neighbours)
    states = {"first": h, "start": h[:, :k], "dual": dual} | ({} if target is None else {"target": target})
    before = model.copied() if plan.dual else model
    theta.step(window.tokens, states)
    # without a dual step nothing moves that ĥ follows from
    residuals, change = parts.residuals, sums(plan, h.device)[1]
    if target is not None:
        residuals, change = dual_step(model, plan, window, h[:, :k], target, dual, before, neighbours)
    elif plan.dual is not None:
        residuals, change = parts.dual_step(before, neighbours)
    moments.keep()
    if boundaries.u is not None:
        boundaries.u[:, k] = 0
    h[:, k] = 0
    return Outcome(
        loss=parts.loss,
        penalty=parts.penalty,
        residuals=residuals,
        dual=plan.terms.weight**2 * change,
        carry=neighbours.around(parts.last),
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


class _RightToLeft:
    """The H-step and the θ-gradient of all parts. loss, penalty, residuals: as `Outcome`'s. last: ĥ [S, d] at the end.

    A part is opened: rolled out. Pulled: there is the gradient with respect to its starts, by targets that have not
    moved yet. Closed: the targets at its blocks' right ends have moved, and its θ-gradient is added.

    target: [S, k+1, d], filled with the moved targets, or None where they are not kept.
    """

    def __init__(
        self,
        model: LanguageModel,
        plan: Plan,
        window: Window,
        h: Tensor,
        target: Tensor | None,
        dual: Tensor,
        moments: Moments,
    ):
        self.last = torch.zeros_like(h[:, 0])
        self.loss = self.penalty = h.new_zeros((), dtype=torch.float64)
        self.residuals, _ = sums(plan, h.device)
        self._model, self._plan, self._window, self._h = model, plan, window, h
        self._target, self._dual, self._moments = target, dual, moments
        self._ends = torch.zeros_like(h[:, :2])  # the targets of boundaries 0 and k
        self._before_first = torch.zeros_like(h[:, 0])  # ĥ of boundary 0
        # the gradient [S, 1, d] where a part begins, by stream and boundary, until the part to the left has read it
        self._as_start: dict[tuple[int, int], Tensor] = {}

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
            self._before_first = edge
            self._move_first()
        arrive = ask_right(plan, window, self._ends, self._dual, neighbours)
        theta.begin(window.inputs, window.tokens)

        def close(opened: _Opened) -> None:
            nonlocal unclosed
            unclosed -= 1
            if not unclosed:
                theta.last_pass()
            self._close(opened)

        unclosed = len(parts)
        for part in parts:
            if part not in apart and part not in ends:
                close(self._pull(self._open(part)))
        for opened in left:
            close(opened)
        arrive()
        for opened in right:
            close(opened)
        if self._target is not None:
            self._target[:, 0] = self._ends[:, 0]

    def _open(self, part: Part, model: LanguageModel | None = None) -> _Opened:
        window, start = part.window(self._window), self._h[part.streams, part.blocks]
        rolled = RollOut(model or self._model, self._plan.terms, window, start)
        opened = _Opened(part, window, rolled, rolled.prediction.detach().view(start.shape))
        if part.blocks.stop == self._window.blocks:
            self.last[part.streams] = opened.prediction[:, -1]
        return opened

    def _pass(self, opened: _Opened, target: Tensor, to_theta: bool) -> Pass:
        """target: [S, m+1, d] of the part."""
        part = opened.part
        return blocks_pass(
            self._model, self._plan.terms, opened.window, self._h[part.streams, part.blocks], target,
            self._dual[part.touched], self._plan.chunk_blocks, to_start=not to_theta, to_theta=to_theta,
            rolled=opened.rolled,
        )  # fmt: skip

    def _gradient(self, opened: _Opened) -> Tensor:
        """Of Eq. 7 with respect to the part's starts, [S, m, d], before the H-step."""
        gradient = self._pass(opened, self._h[opened.part.touched], to_theta=False).start_gradient
        assert gradient is not None
        return gradient

    def _pull(self, opened: _Opened) -> _Opened:
        opened.gradient = gradient = self._gradient(opened)
        self._as_start[opened.part.streams.start, opened.part.blocks.start] = gradient[:, :1].clone()
        return opened

    def _close(self, opened: _Opened) -> None:
        """Move the targets at the blocks' right ends, then add to the θ-gradient."""
        part, gradient = opened.part, opened.gradient
        assert gradient is not None
        target = self._h[part.touched].clone()
        after = self._as_start.pop((part.streams.start, part.blocks.stop), None)
        if after is None:  # the window's end, or another worker's
            target[:, -1], gradient = self._ends[part.streams, 1], gradient[:, 1:]
        else:
            gradient = torch.cat([gradient[:, 1:], after], 1)
        if count := gradient.shape[1]:
            here = (part.streams, slice(part.blocks.start + 1, part.blocks.start + 1 + count))
            target[:, 1 : 1 + count] = self._step(here, opened.prediction[:, :count], gradient)
        result = self._pass(opened, target, to_theta=True)
        self.loss, self.penalty = self.loss + result.loss, self.penalty + result.penalty
        if self._target is not None:
            self._target[part.streams, part.blocks.start + 1 : part.blocks.stop + 1] = target[:, 1:]
        if self._plan.dual is None:
            squared = squares(target[:, 1:] - opened.prediction, opened.window.coupled[:, 1:])
            self.residuals += by_place(self._plan, squared, opened.window.offset + 1)

    def _step(self, here: tuple[slice, slice], prediction: Tensor, as_start: Tensor) -> Tensor:
        remember = self._target is not None or self._plan.dual is None
        return self._moments.step(self._h, self._dual, here, prediction, as_start, remember)

    def _move_first(self) -> None:
        """The H-step at boundary 0, whose ĥ the left neighbour has."""
        for stream, boundary in list(self._as_start):
            if boundary == 0:
                gradient = self._as_start.pop((stream, 0))
                here = (slice(stream, stream + len(gradient)), slice(0, 1))
                self._ends[here] = self._step(here, self._before_first[here[0], None], gradient)

    def dual_step(self, before: LanguageModel, neighbours: Neighbours) -> tuple[Tensor, Tensor]:
        """As `in_parts.dual_step`, with the targets worked out once more from θ as it was, `before`.

        From left to right, since the H-step of a part reads the dual at its right end. The moments change here.
        """
        S, k, plan, window, h = self._h.shape[0], self._window.blocks, self._plan, self._window, self._h
        end = predict(self._model, window.inputs[:, :, -1:], h[:, k - 1 : k], plan.chunk_blocks)
        arrival = neighbours.to_right(end[:, 0])
        residuals, change = sums(plan, h.device)
        edge: Tensor | None = None  # ĥ of boundary 0, now
        edges: dict[int, tuple[Tensor, Tensor]] = {}  # ĥ, before and now, where the next part of the streams begins
        for part in reversed(from_right_to_left(S, k, plan.chunk_blocks, (False, False))):
            with frozen(before):
                opened = self._open(part, before)
                gradient = self._gradient(opened)
            now = predict(self._model, opened.window.inputs, h[part.streams, part.blocks], plan.chunk_blocks)
            change += squares(now - opened.prediction, opened.window.coupled[:, 1:]).sum()
            if not part.blocks.start:
                if edge is None:  # the first worker waits too: a message that nobody waits for may never leave
                    from_left = arrival()
                    edge = self._before_first if from_left is None else from_left
                edges[part.streams.start] = (self._before_first[part.streams], edge[part.streams])
            here, streams = (part.streams, part.blocks), part.streams.start
            left, left_now = edges[streams]
            target = self._moments.step(h, self._dual, here, shifted(left, opened.prediction), gradient)
            residual, coupled = target - shifted(left_now, now), window.coupled[here]
            residuals += by_place(plan, squares(residual, coupled), window.offset + part.blocks.start)
            self._dual[here] += dual_ascent(plan, residual, coupled)
            edges[streams] = (opened.prediction[:, -1], now[:, -1])
        return residuals, change

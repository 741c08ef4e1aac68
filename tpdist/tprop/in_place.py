"""A visit of a window that is all that a worker owns, in place and a part at a time: `pm` and `admm` in batch mode.

`visit` makes some 10 tensors over all boundaries, which is nothing where windows are short. Here a part's states,
moments and duals are changed where they are kept as soon as nobody reads the old ones. What is made over all boundaries
is one tensor: with starts held the targets (`in_place_held.py`), with starts tied, here, the first predictions, for the
dual residual.

The oracle is that of `visit` (tests/tprop/test_in_place.py). Shape letters: `window.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.h_steps import ask_right
from tpdist.tprop.in_parts import Moments, dual_step, first_values_in_place, shifted, squares, sums
from tpdist.tprop.objective import blocks_pass, frozen
from tpdist.tprop.outcome import Outcome, by_place
from tpdist.tprop.parts import Part
from tpdist.tprop.plan import Plan
from tpdist.tprop.states import Boundaries
from tpdist.tprop.theta import Theta
from tpdist.tprop.window import Neighbours, Window


def works_in_place(plan: Plan, window: Window, boundaries: Boundaries) -> bool:
    """Whether this visit is one of those: of more blocks than fit into a chunk."""
    k, h = window.blocks, boundaries.h
    whole = h is not None and 1 < k == h.shape[1] - 1
    return plan.in_place and window.constrained and whole and window.inputs.shape[1] * k > plan.chunk_blocks


def visit_in_place(
    model: LanguageModel,
    plan: Plan,
    theta: Theta,
    window: Window,
    boundaries: Boundaries,
    carried: Tensor,
    neighbours: Neighbours,
) -> Outcome:
    """As `visit`, with starts tied. After a BlowUpError H has moved and U has not."""
    k = window.blocks
    h, dual = first_values_in_place(model, plan, window, boundaries, carried, neighbours)
    start = h[:, :k]
    first = torch.empty_like(start)

    arrive = ask_right(plan, window, h, dual, neighbours)
    _h_step(model, plan, window, h, dual, boundaries, first, neighbours, arrive)

    arrive = ask_right(plan, window, h, dual, neighbours)
    theta.begin(window.inputs, window.tokens)
    residuals, change = sums(plan, h.device)

    def compare(part: Part, prediction: Tensor, _: Tensor | None) -> None:
        nonlocal residuals, change
        if plan.dual is None:
            coupled = part.right(window.coupled)
            squared = part.shaped(squares(part.right(h) - prediction, coupled)[:, None])[..., 0]
            residuals += by_place(plan, squared, window.offset + part.blocks.start + 1)
            change += squares(prediction - part.of(first), coupled).sum()

    result = blocks_pass(
        model, plan.terms, window, start, h, dual, plan.chunk_blocks, to_theta=True, arrive=arrive,
        before_last=theta.last_pass, each=compare,
    )  # fmt: skip
    states = {"start": start, "target": h, "dual": dual}
    theta.step(window.tokens, states)
    if plan.dual is not None:
        residuals, change = dual_step(model, plan, window, start, h, dual, first, neighbours)
    if boundaries.u is not None:
        boundaries.u[:, k] = 0
    h[:, k] = 0
    return Outcome(
        loss=result.loss,
        penalty=result.penalty,
        residuals=residuals,
        dual=plan.terms.weight**2 * change,
        carry=neighbours.around(result.predictions[:, -1]),
        states=states,
    )


def _h_step(
    model: LanguageModel,
    plan: Plan,
    window: Window,
    h: Tensor,
    dual: Tensor,
    boundaries: Boundaries,
    first: Tensor,
    neighbours: Neighbours,
    arrive: Callable[[], None],
) -> None:
    """One step on h [S, k+1, d], each part as soon as the ĥ at its first boundary is known. Fills `first`."""
    edges: dict[tuple[int, int], Tensor] = {}  # ĥ where a part ends, by stream and boundary
    # parts by where they begin, with their ĥ and the gradient with respect to their starts, both [streams, blocks, d]
    waiting: dict[tuple[int, int], tuple[Part, Tensor, Tensor]] = {}
    moments = Moments(plan, window, boundaries)

    def take(part: Part, prediction: Tensor, gradient: Tensor | None) -> None:
        assert gradient is not None
        part.put(first, prediction)
        stream, begin, values = part.streams.start, part.blocks.start, part.shaped(prediction)
        edges[stream, part.blocks.stop] = values[:, -1].clone()
        if begin == 0 and neighbours.is_first:
            edges[stream, 0] = torch.zeros_like(values[:, 0])
        waiting[stream, begin] = (part, values, part.shaped(gradient))
        move_those_known()

    def move_those_known() -> None:
        for place in waiting.keys() & edges.keys():
            part, values, gradient = waiting.pop(place)
            here = (part.streams, part.blocks)
            h[here] = moments.step(h, dual, here, shifted(edges.pop(place), values), gradient)

    with frozen(model):
        result = blocks_pass(
            model, plan.terms, window, h[:, : window.blocks], h, dual, plan.chunk_blocks, to_start=True,
            neighbours=neighbours, arrive=arrive, each=take,
        )  # fmt: skip
    from_left = result.from_left()
    if from_left is not None:  # those that still wait begin at boundary 0
        edges.update({(part.streams.start, 0): from_left[part.streams] for part, *_ in waiting.values()})
    move_those_known()
    moments.keep()

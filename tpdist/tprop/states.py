"""The free states H and the duals U that a worker's blocks own, and the first values of a visit.

Shape letters: `window.py`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.tprop.plan import Plan
from tpdist.tprop.prediction import predict_across
from tpdist.tprop.window import Neighbours, Window


@dataclass
class Boundaries:
    """What stays from visit to visit, over all boundaries of the worker; None where the method keeps nothing.

    h, u, costate: [S, n+1, d]; boundary i is the start of block i, but that a closing target has a place of its own
    behind its window's blocks. h_moments: the H-optimiser's state of the same shape, by name; h_counts: its scalars, by
    the window's first place.
    """

    h: Tensor | None = None
    u: Tensor | None = None
    costate: Tensor | None = None
    h_moments: dict[str, Tensor] = field(default_factory=dict)
    h_counts: dict[int, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def for_plan(cls, plan: Plan, streams: int, blocks: int, model: LanguageModel) -> "Boundaries":
        """All zero, in the model's dtype and on its device."""

        def zeros(wanted: bool) -> Tensor | None:
            return model.bias.new_zeros(streams, blocks + 1, model.state_size) if wanted else None

        return cls(zeros(plan.stores_states), zeros(plan.keep_duals), zeros(plan.stores_costates))

    def rescale_duals(self, old_weight: float, new_weight: float) -> None:
        """u ← u λ_old/λ_new: the multiplier λu stays when λ changes (Boyd et al. 2011, Section 3.4.1)."""
        if self.u is not None and old_weight != new_weight:
            self.u *= old_weight / new_weight

    def put(self, name: str, tensor: Tensor) -> None:
        """Another tensor in the place of that name of `tensors`."""
        if name.startswith("h_moments."):
            self.h_moments[name.removeprefix("h_moments.")] = tensor
        else:
            setattr(self, name, tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds of them, by name."""
        named = {"h": self.h, "u": self.u, "costate": self.costate}
        named |= {f"h_moments.{name}": moment for name, moment in self.h_moments.items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def first_values(
    model: LanguageModel,
    plan: Plan,
    window: Window,
    begin: int,
    boundaries: Boundaries,
    carried: Tensor,
    neighbours: Neighbours,
) -> Tensor:
    """First values of the targets of one window: [S, k+1, d]; boundary k is 0 until the right neighbour sends it.

    begin: the window's first place in `boundaries`. carried: [S, d], the previous window's prediction.
    `zero`; `one-block`, every block from a zero state; `forward`, Eq. 1 for every block in turn (Section
    4.1); `persistent`, kept from the last visit and relaxed.
    """
    S, k, d = carried.shape[0], window.blocks, carried.shape[1]
    h = carried.new_zeros(S, k + 1, d)
    crosses = plan.first == "persistent" and _reach(plan, window) > 0  # the sweeps bring the window's first state too
    edge = neighbours.is_first and not crosses
    if edge:
        h[:, 0] = edge_state(model, plan, window, begin, boundaries, carried)
    if plan.first == "forward":
        count = k - 1 if neighbours.is_last else k  # nobody reads the state at the window's end

        def roll(start: Tensor) -> Tensor:
            h[:, 0] = start
            for block in range(count):
                h[:, block + 1] = model.unroll(window.inputs[:, :, block], h[:, block])[1]
            return h[:, count]

        with torch.no_grad():
            neighbours.relay(h[:, 0], roll)
    elif plan.first == "one-block":
        zero = torch.zeros_like(h[:, :-1])
        predictions, arrival = predict_across(model, window.inputs, zero, plan.chunk_blocks, neighbours)
        h[:, 1:] = predictions
        from_left = arrival()
        if from_left is not None:
            h[:, 0] = from_left
    elif plan.first == "persistent":
        assert boundaries.h is not None
        own = 1 if edge else 0
        h[:, own:k] = boundaries.h[:, begin + own : begin + k]
        _relax(model, plan, window, begin, boundaries.h, h, neighbours)
    h[:, k] = 0
    return h


def edge_state(
    model: LanguageModel, plan: Plan, window: Window, begin: int, boundaries: Boundaries, carried: Tensor
) -> Tensor:
    """The state at the window's start [S, d]: 0, carried, or the stored one rolled through the blocks before it."""
    if window.opens or not plan.carry:
        return torch.zeros_like(carried)
    if not plan.shuffled:
        return carried
    assert boundaries.h is not None
    earlier = window.earlier.shape[2]
    state = boundaries.h[:, begin - earlier]
    with torch.no_grad():
        for block in range(earlier):
            state = model.unroll(window.earlier[:, :, block], state)[1]
    return state


def _relax(
    model: LanguageModel,
    plan: Plan,
    window: Window,
    begin: int,
    stored: Tensor,
    h: Tensor,
    neighbours: Neighbours,
) -> None:
    """`relaxation` sweeps h_i ← ĥ_i, all blocks at once: r sweeps reach r blocks back.

    Windows in random order let the reach cross the window's edge: the sweeps then run over the blocks before
    it too, each over one less of them than the last, and the window's first state needs no roll-out of its own.
    """
    e, r = _reach(plan, window), plan.relaxation
    states, inputs = h[:, :-1], window.inputs
    if e:
        states = torch.cat([stored[:, begin - e : begin], states], 1)
        inputs = torch.cat([window.earlier, inputs], 2)
    last = 1 if neighbours.is_last else 0  # nobody reads the prediction of the window's last block
    count = states.shape[1] - last
    for sweep in range(r):
        first = max(0, e - r + sweep)  # nothing that comes later reads what the blocks before this one predict
        if count:
            predictions, arrival = predict_across(
                model, inputs[:, :, first:count], states[:, first:count], plan.chunk_blocks, neighbours
            )
        else:
            predictions, arrival = states[:, :0], neighbours.to_right(states[:, -1])
        from_left = arrival()
        states[:, first + 1 :] = predictions[:, : states.shape[1] - first - 1]
        if from_left is not None:
            states[:, 0] = from_left
    if e:
        h[:, :-1] = states[:, e:]


def _reach(plan: Plan, window: Window) -> int:
    """The blocks before the window that its first state is brought through."""
    return window.earlier.shape[2] if plan.carry else 0


def keep(plan: Plan, begin: int, boundaries: Boundaries, start: Tensor, last: Tensor) -> None:
    """What a visit leaves in the stored states: the starts as the visit left them [S, k, d].

    With starts held a target is a start plus a step along the costate, no estimate of the state, so the start
    is what is kept. The window's last prediction [S, d] waits for the visit of the window after it.
    """
    if boundaries.h is not None:
        k = start.shape[1]
        boundaries.h[:, begin : begin + k] = start
        if plan.shuffled:
            boundaries.h[:, begin + k] = last

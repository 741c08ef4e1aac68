"""The gradient through the recurrence over a long text, all blocks at once, on one worker or on many.

Relaxation finds the states at the blocks' starts, and costate sweeps what the loss after a block says of the state at
its end, both for all blocks in parallel (`tprop/states.py`, `tprop/costate.py`); one pass over all blocks then gives
the gradient (README, "The method"). A recurrence forgets, so what stands at a boundary depends on few steps beside it:
a sweep reads `reach` steps of every block, and the reach is doubled until what it finds changes by less than
`TOLERANCE`. Where it comes to the whole block, sweeps of whole blocks go on from there. Workers own contiguous spans of
blocks; a state a sweep crosses the edge between two.

The loss is Σ ⟨v_t, h_t⟩ with drawn v: the head, which knows no order, is left out. Oracles: `sequential`, `torchs`.

Shape letters: `tprop/window.py`; T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tpdist.models import LanguageModel
from tpdist.parallel import Workers
from tpdist.tprop import Alone, Neighbours

TOLERANCE = 1e-4  # change of states and costates between two sweeps, relative to their norm
FIRST_REACH = 16


@dataclass
class Cost:
    """Sweeps taken, and passes over the text that they come to: a sweep that reads half of every block counts ½."""

    sweeps: int = 0
    passes: float = 0.0


def sequential(model: LanguageModel, ids: Tensor, up: Tensor) -> list[Tensor]:
    """BPTT over the whole text [T]; up [T, H]: the gradient of the loss at every h. -> that of the recurrence's θ."""
    h, _ = model.unroll(ids[:, None], model.zero_state(1))
    return list(torch.autograd.grad(h, _parameters(model), up[:, None]))


def torchs(model: LanguageModel, ids: Tensor, up: Tensor) -> list[Tensor]:
    """The same through `nn.GRU`."""
    h, _ = model.layers[0].rnn(model.embedding(ids[:, None]))  # type: ignore[operator]
    return list(torch.autograd.grad(h, _parameters(model), up[:, None]))


def in_parallel(
    model: LanguageModel,
    ids: Tensor,
    up: Tensor,
    blocks: int,
    states: Cost | None = None,
    costates: Cost | None = None,
    workers: Workers | None = None,
) -> list[Tensor]:
    """The same with all blocks at once.

    ids, up, blocks: this worker's, a span of the text. states, costates: are told what the sweeps cost.
    """
    workers = workers or Workers.alone()
    neighbours = workers.neighbours or Alone()
    inputs = ids.view(blocks, -1).t().contiguous()  # [B, k]
    above = up.view(blocks, -1, up.shape[1]).transpose(0, 1).contiguous()  # [B, k, H]

    def relax(start: Tensor, reach: int) -> Tensor:
        with torch.no_grad():
            return _to_the_right(model.unroll(inputs[-reach:], start)[1], neighbours)

    start = _settle(relax, model.zero_state(blocks), len(inputs), states or Cost(), workers)

    def sweep(costate: Tensor, reach: int) -> Tensor:
        leaf = start.detach().requires_grad_()
        h, prediction = model.unroll(inputs[:reach], leaf)
        return torch.autograd.grad((h, prediction), leaf, (above[:reach], _to_the_left(costate, neighbours)))[0]

    costate = _settle(sweep, model.zero_state(blocks), len(inputs), costates or Cost(), workers)
    h, prediction = model.unroll(inputs, start)
    gradients = torch.autograd.grad((h, prediction), _parameters(model), (above, _to_the_left(costate, neighbours)))
    workers.sum_all(gradients)
    return list(gradients)


def _settle(sweep: Callable[[Tensor, int], Tensor], zero: Tensor, steps: int, cost: Cost, workers: Workers) -> Tensor:
    """Sweeps of a growing reach from 0, then of whole blocks from where they are, until the change is small."""
    reach, value = min(FIRST_REACH, steps), zero
    for _ in range(2 * steps * workers.count):
        last, value = value, sweep(value if reach == steps else zero, reach)
        cost.sweeps += 1
        cost.passes += reach / steps
        squares = workers.sum(torch.stack([(value - last).square().sum(), value.square().sum()]))
        if cost.sweeps > 1 and float(squares[0]) <= TOLERANCE**2 * float(squares[1]):
            break
        reach = min(2 * reach, steps)
    return value


def _to_the_right(values: Tensor, neighbours: Neighbours) -> Tensor:
    """[k, d]: what ends block i to the start of block i+1."""
    arrival = neighbours.to_right(values[-1])
    moved = torch.zeros_like(values)
    moved[1:] = values[:-1]
    edge = arrival()
    if edge is not None:
        moved[0] = edge
    return moved


def _to_the_left(values: Tensor, neighbours: Neighbours) -> Tensor:
    """[k, d]: what stands at the start of block i to the end of block i-1."""
    arrival = neighbours.to_left(values[0])
    moved = torch.zeros_like(values)
    moved[:-1] = values[1:]
    edge = arrival()
    if edge is not None:
        moved[-1] = edge
    return moved


def _parameters(model: LanguageModel) -> list[Tensor]:
    return list(model.layers.parameters())


def relative_error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest over parameters, each of norms; NaN where one of them is."""
    return float(torch.stack([(a - b).norm() / b.norm() for a, b in zip(got, wanted, strict=True)]).max())

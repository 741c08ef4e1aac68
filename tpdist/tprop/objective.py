"""Eq. 6-8 over one worker's blocks, a chunk of blocks at a time, and its gradients.

Given the boundaries, blocks do not know each other: block i reads its start, and the target, the dual and
the costate at its right boundary i+1. So the sum over a window falls into chunks of any size, and memory
does not grow with the window.

Shape letters: `window.py`, `tpdist.models.cells`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tpdist.models import IGNORED, LanguageModel
from tpdist.tprop.parts import Part, chunks, cut
from tpdist.tprop.penalties import penalty, target_loss
from tpdist.tprop.plan import Terms
from tpdist.tprop.prediction import Each, edge_to_the_right, note
from tpdist.tprop.rollout import RollOut, own_labels
from tpdist.tprop.window import Arrival, Neighbours, Window, nothing


@dataclass
class Pass:
    """One pass over the worker's blocks, in nats, undivided.

    loss: the cross entropy. penalty: λ C. predictions: ĥ [S, k, d] at the right boundary of every block; of the last
    alone, [S, 1, d], where the parts' were handed out.
    start_gradient: of loss + penalty + ⟨costate, ĥ⟩ with respect to the starts [S, k, d], if asked for.
    from_left: the left neighbour's ĥ [S, d] of boundary 0, where predictions were sent.
    """

    loss: Tensor
    penalty: Tensor
    predictions: Tensor
    start_gradient: Tensor | None
    from_left: Arrival = nothing


def blocks_pass(
    model: LanguageModel,
    terms: Terms,
    window: Window,
    start: Tensor,
    target: Tensor,
    dual: Tensor,
    chunk_blocks: int,
    costate: Tensor | None = None,
    to_start: bool = False,
    to_theta: bool = False,
    rolled: RollOut | None = None,
    neighbours: Neighbours | None = None,
    arrive: Callable[[], None] = nothing,
    before_last: Callable[[], None] = nothing,
    each: Each | None = None,
) -> Pass:
    """Roll every block out from its start; score it; differentiate.

    start [S, k, d]; target, dual, costate [S, k+1, d]: of them only boundaries 1..k are read; the costate's are 0
    where no text lies behind. With `to_theta` the gradient is added to the parameters' `.grad`, with `to_start` it is
    returned. rolled: these blocks, rolled out already from `start` with the same θ; its shape alone is then read.

    neighbours: send ĥ of the last block to the right as soon as it is known. arrive: fills boundary k of target and
    dual; called as late as possible. before_last: called before the backward pass that ends the θ-gradient.
    each: takes every part's ĥ and gradient as soon as they are known; nothing is then kept over all blocks. It may
    change target and dual at the part's starts once the part to the left has been handed out, too.
    """
    S, k, _ = start.shape
    if rolled is not None:
        from_left = neighbours.to_right(rolled.prediction.view(start.shape)[:, -1]) if neighbours else nothing
        if to_start:
            _ = rolled.loss  # the head's pass, while messages are under way
        arrive()
        before_last()
        result = _rolled_pass(model, terms, window, start.shape, target, dual, costate, rolled, to_start, to_theta)
        result.from_left = from_left
        return result
    predictions = torch.empty_like(start if each is None else start[:, -1:])
    gradient = torch.zeros_like(start) if to_start and each is None else None
    loss_sum = penalty_sum = start.new_zeros((), dtype=torch.float64)

    def roll(part: Part) -> tuple[Tensor, Tensor, Tensor]:
        # a copy: what it is a view of may change while the graph lives
        leaf = part.of(start).detach().clone().requires_grad_(to_start)
        with torch.set_grad_enabled(to_start or to_theta):
            h, prediction = model.unroll(part.tokens(window.inputs), leaf)
        note(part, prediction.detach(), predictions, k)
        return leaf, h, prediction

    def score(part: Part, leaf: Tensor, h: Tensor, prediction: Tensor) -> None:
        nonlocal loss_sum, penalty_sum
        coupled = part.right(window.coupled)
        with torch.set_grad_enabled(to_start or to_theta):
            labels = part.tokens(window.labels)
            loss, cost = _loss_and_penalty(
                model, terms, prediction, part.right(target), part.right(dual), labels[-1], coupled, window.constrained
            )
            loss = model.loss(h, own_labels(terms, labels, coupled, window.constrained)) + loss
            total = loss + cost
            if costate is not None:
                total = total + (part.right(costate) * prediction).sum()
        pulled = None
        if to_theta:
            total.backward()
            pulled = leaf.grad
        elif to_start:
            pulled = torch.autograd.grad(total, leaf)[0]
        if each is not None:
            each(part, prediction.detach(), pulled)
        elif gradient is not None and pulled is not None:
            part.put(gradient, pulled)
        loss_sum = loss_sum + loss.detach()
        penalty_sum = penalty_sum + cost.detach()

    first, others = cut(S, k, chunk_blocks, edge_to_the_right(neighbours))
    if len(first) > 1:  # more than may be open at once: what the neighbour waits for comes first, the rest in its turn
        for part in first:
            with torch.no_grad():
                note(part, model.unroll(part.tokens(window.inputs), part.of(start))[1], predictions, k)
        first, others = [], [*others, *first]
    opened = [(part, *roll(part)) for part in first]
    from_left = neighbours.to_right(predictions[:, -1]) if neighbours else nothing
    # parts at boundary k wait for what arrives there, one of them rolled out already
    late = [part for part in others if part.blocks.stop == k] or others[-1:]
    for part in others[: len(others) - len(late)]:
        score(part, *roll(part))
    opened += [(part, *roll(part)) for part in late[:1]]
    arrive()
    for part in late[1:]:
        score(*opened.pop())
        opened.append((part, *roll(part)))
    for item in opened[:-1]:
        score(*item)
    before_last()
    score(*opened[-1])
    return Pass(loss_sum, penalty_sum, predictions, gradient, from_left)


def _rolled_pass(
    model: LanguageModel,
    terms: Terms,
    window: Window,
    shape: torch.Size,
    target: Tensor,
    dual: Tensor,
    costate: Tensor | None,
    rolled: RollOut,
    to_start: bool,
    to_theta: bool,
) -> Pass:
    """The same, on a roll-out. `to_theta` ends it: the graph is freed and the parameters are about to move."""
    h_right, u_right = (x[:, 1:].flatten(0, 1) for x in (target, dual))
    coupled, label = window.coupled[:, 1:].flatten(), window.labels[-1].flatten()

    def at(prediction: Tensor) -> tuple[Tensor, Tensor]:
        return _loss_and_penalty(model, terms, prediction, h_right, u_right, label, coupled, window.constrained)

    gradient = None
    if to_theta:
        with torch.enable_grad():
            loss, cost = at(rolled.prediction)
            loss = rolled.loss + loss
            total = loss + cost
            if costate is not None:
                total = total + (costate[:, 1:].flatten(0, 1) * rolled.prediction).sum()
        total.backward()
        if to_start:
            assert rolled.start.grad is not None
            gradient = rolled.start.grad.view(shape)
    else:
        leaf = rolled.prediction.detach().requires_grad_()
        with torch.enable_grad(), frozen(model):
            loss, cost = at(leaf)
        pulled = torch.autograd.grad(cost, leaf)[0] if cost.requires_grad else torch.zeros_like(leaf)
        gradient = rolled.gradient(pulled).view(shape)
        loss = rolled.loss + loss
    return Pass(loss.detach().double(), cost.detach().double(), rolled.prediction.detach().view(shape), gradient)


def _loss_and_penalty(
    model: LanguageModel,
    terms: Terms,
    prediction: Tensor,
    target: Tensor,
    dual: Tensor,
    label: Tensor,
    coupled: Tensor,
    constrained: bool,
) -> tuple[Tensor, Tensor]:
    """Loss on the targets (Eq. 8) and penalty of n boundaries: [n, d] each, label and coupled [n]."""
    loss = cost = prediction.new_zeros(())
    if constrained and terms.couples:
        cost = penalty(model, terms, target, prediction, dual, coupled)
        if terms.loss_on == "target":
            loss = target_loss(model, target, label, coupled)
    return loss, cost


def target_gradient(
    model: LanguageModel,
    terms: Terms,
    window: Window,
    target: Tensor,
    prediction: Tensor,
    dual: Tensor,
    chunk_blocks: int,
) -> Tensor:
    """Gradient of the objective with respect to the targets as targets: the part that the block before sees.

    target, prediction, dual [S, k+1, d] -> [S, k+1, d]; λ (h - ĥ + u) for `l2` (Eq. 7). A boundary's own
    worker computes it, from ĥ that the left neighbour sends.
    """
    S, places, d = target.shape
    if terms.penalty == "l2" and terms.loss_on == "prediction":
        gradient = target - prediction
        gradient += dual
        gradient *= terms.weight
        gradient *= window.coupled[..., None]
        return gradient
    # The token that a boundary's state predicts is the first input of the block it starts. Boundary k is
    # another worker's or a closing target, which carries no loss.
    label = torch.cat([window.inputs[0], window.labels.new_full((S, 1), IGNORED)], 1).reshape(-1)
    flat = [x.reshape(-1, d) for x in (target, prediction, dual)]
    coupled = window.coupled.reshape(-1)
    gradient = torch.empty_like(flat[0])
    for chunk in chunks(S * places, chunk_blocks):
        with torch.enable_grad():
            leaf = flat[0][chunk].detach().requires_grad_()
            total = penalty(model, terms, leaf, flat[1][chunk], flat[2][chunk], coupled[chunk])
            if terms.loss_on == "target":
                total = total + target_loss(model, leaf, label[chunk], coupled[chunk])
        # an own penalty need not read the targets
        gradient[chunk] = torch.autograd.grad(total, leaf)[0] if total.requires_grad else 0.0
    return gradient.view(S, places, d)


@contextmanager
def frozen(model: LanguageModel) -> Iterator[None]:
    """No gradients of θ inside: an H-step does not pay for them."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)

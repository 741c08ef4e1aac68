"""Perplexity of the model rolled out over a whole split as one stream (Eq. 1), θ frozen but where asked otherwise.

Pieces of the split are rolled out side by side by the relaxation `h_i ← ĥ_i`: a recurrence forgets, so that two sweeps
find states at the pieces' starts which one piece after another would find in as many times the steps as there are
pieces.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tpdist.data import Tokens
from tpdist.models import LanguageModel, token_losses
from tpdist.training.at_test_time import AtTestTime

STEPS = 1024  # of a piece
SIDE_BY_SIDE = {"cpu": 16, "cuda": 64}  # pieces; enough rows for a matrix product to run at full rate
SWEEPS = 8  # where states have not settled by then, the model forgets too slowly: one piece after another
BEFORE = 4  # pieces that a worker reads before its own, to come to the state that they begin with
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # change of a unit between two sweeps, relative to its largest


@dataclass(frozen=True)
class Evaluation:
    """loss: mean nats per token. by_position: perplexity at every position of a block, if asked for."""

    loss: float
    tokens: int
    by_position: list[float] | None = None

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)


@dataclass(frozen=True)
class Share:
    """What one worker finds of an evaluation.

    loss: in nats, summed over its pieces; None where the model forgets too slowly for their first state to be had
    without all that is before it. joints [joints, 2, d]: added up over all workers, by how much the state that one
    worker ends with differs from that which the next began with, and the sizes of the former.
    """

    loss: float | None
    joints: Tensor


def perplexity(mean_loss: float) -> float:
    """exp(mean nats per token); inf where that overflows."""
    return math.inf if mean_loss >= 700 else math.exp(mean_loss)


def evaluate_tokens(
    model: LanguageModel,
    tokens: Tokens,
    block: int,
    *,
    by_position: bool = False,
    test_time: AtTestTime | None = None,
    tick: Callable[[], None] | None = None,
) -> Evaluation:
    """Every token but the first, predicted from all tokens before it.

    test_time: what to learn from every block once it has been predicted.
    tick: called between pieces; what it raises ends the evaluation.
    """
    if test_time is None:
        pieces = (losses for losses, _ in _pieces(model, tokens, block, 0, len(tokens) - 1, model.zero_state(1)))
    else:
        model = model.copied()  # its θ may go on learning
        pieces = _blocks(model, tokens, block, test_time)
    pairs = len(tokens) - 1
    sums = torch.zeros(block, dtype=torch.float64, device=model.bias.device)  # by position
    for losses in pieces:
        sums.index_add_(0, torch.arange(len(losses), device=sums.device) % block, losses)
        if tick is not None:
            tick()
    counts = [len(range(p, pairs, block)) for p in range(block)]
    positions = [perplexity(s / n) for s, n in zip(sums.tolist(), counts, strict=True) if n] if by_position else None
    return Evaluation(float(sums.sum()) / pairs, pairs, positions)


def share_of_loss(
    model: LanguageModel,
    tokens: Tokens,
    block: int,
    rank: int,
    count: int,
    tick: Callable[[], None] | None = None,
) -> Share:
    """The `rank`-th of `count` runs of pieces: losses summed over all ranks are the loss of `evaluate_tokens`.

    So it is where the joints say, too, that every worker began as the one before it ended.
    """
    pairs, size = len(tokens) - 1, _size(block)
    pieces = math.ceil(pairs / size)
    begins = [min(pieces * r // count * size, pairs) for r in range(count + 1)]
    begin, end = begins[rank], begins[rank + 1]
    with_pieces = sorted(set(begins))[:-1]
    state, first = model.zero_state(1), max(0, begin - BEFORE * size)
    joints = torch.zeros(len(with_pieces) + 1, 2, state.shape[1], dtype=torch.float64, device=state.device)
    if begin == end:
        return Share(0.0, joints)
    if first < begin:
        inputs, _ = _read(model, tokens, first, begin, (begin - first) // size)
        # in the middle of the text the state of 0 is a guess, with which as many sweeps as pieces settle, too
        before = roll_out(model, inputs, state, SWEEPS if first == 0 else BEFORE - 1)
        if before is None:
            return Share(None, joints)
        state = before[1]
    place = with_pieces.index(begin)
    joints[place, 0] -= state[0]
    total = torch.zeros((), dtype=torch.float64, device=state.device)
    for losses, after in _pieces(model, tokens, block, begin, end, state):
        total, state = total + losses.sum(), after
        if tick is not None:
            tick()
    joints[place + 1] += torch.stack([state[0], state[0].abs()])
    return Share(float(total), joints)


def joined(joints: Tensor, dtype: torch.dtype) -> bool:
    """Whether all workers' joints added up, [joints, 2, d], leave no gap: a model may remember what was long before.

    dtype: of the states. The text begins at the first joint and ends at the last.
    """
    return not _differ(joints[1:-1, 0], joints[1:, 1], dtype)


def _differ(change: Tensor, states: Tensor, dtype: torch.dtype) -> bool:
    """Whether a unit changes, [..., d], by more than a little of its largest value in `states`. A NaN does not."""
    return bool((change.abs() > TOLERANCE[dtype] * states.abs().amax(0)).any())


def _size(block: int) -> int:
    """Steps of a piece: whole blocks."""
    return max(block, STEPS // block * block)


def _read(model: LanguageModel, tokens: Tokens, begin: int, end: int, pieces: int) -> tuple[Tensor, Tensor]:
    """From `begin` to `end` on the model's device: inputs [B, pieces], labels [B · pieces] in the order of the text."""
    ids = torch.from_numpy(tokens.read(begin, end + 1).astype(np.int64)).to(model.bias.device)
    return ids[:-1].view(pieces, -1).t(), ids[1:]


def _pieces(
    model: LanguageModel, tokens: Tokens, block: int, begin: int, end: int, state: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """The losses of every piece from `begin`, which the text reaches in `state`, to `end`; the state after them."""
    size, many = _size(block), SIDE_BY_SIDE[model.bias.device.type]
    while begin < end:
        pieces = max(1, min(many, (end - begin) // size))  # what is left at last is shorter
        inputs, labels = _read(model, tokens, begin, min(begin + pieces * size, end), pieces)
        rolled = roll_out(model, inputs, state, SWEEPS)
        if rolled is None:
            many = 1
            continue
        h, state = rolled
        for seen, label in zip(h.unbind(1), labels.chunk(pieces), strict=True):
            yield token_losses(seen, model.weight, model.bias, label).double(), state
        begin += len(labels)


def _blocks(model: LanguageModel, tokens: Tokens, block: int, test_time: AtTestTime) -> Iterator[Tensor]:
    """The losses of every block, with what is learnt from one before the next."""
    state, pairs = model.zero_state(1), len(tokens) - 1
    for begin in range(0, pairs, block):
        inputs, labels = _read(model, tokens, begin, min(begin + block, pairs), 1)
        with torch.no_grad():
            h, after = model.unroll(inputs, state)
        yield token_losses(h[:, 0], model.weight, model.bias, labels).double()
        state = test_time.learn(model, inputs, labels, state, after)


def roll_out(model: LanguageModel, inputs: Tensor, start: Tensor, sweeps: int) -> tuple[Tensor, Tensor] | None:
    """Eq. 1 over consecutive pieces of a text, side by side; None where their states do not settle in so many sweeps.

    inputs [B, k]: a piece is a column; start [1, d] of the first -> the top layer's h [B, k, H], the last state [1, d].
    """
    starts = torch.cat([start, model.zero_state(inputs.shape[1] - 1)])
    with torch.no_grad():
        for _ in range(sweeps):
            h, ends = model.unroll(inputs, starts)
            last, starts = starts, torch.cat([start, ends[:-1]])
            if not _differ(starts - last, ends, start.dtype):  # a NaN settles nothing, and is for the caller
                return h, ends[-1:]
    return None

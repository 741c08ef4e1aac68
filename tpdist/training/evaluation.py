"""Perplexity of the model rolled out over a whole split as one stream (Eq. 1), θ frozen but where asked otherwise.

Pieces of the split are rolled out side by side by the relaxation `h_i ← ĥ_i`: a recurrence forgets, so that two sweeps
find states at the pieces' starts which one piece after another would find in as many times the steps as there are
pieces.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tpdist.data import Tokens
from tpdist.models import LanguageModel, token_losses
from tpdist.training.at_test_time import TestTime

STEPS = 1024  # of a piece
SIDE_BY_SIDE = {"cpu": 16, "cuda": 64}  # pieces; enough rows for a matrix product to run at full rate
SWEEPS = 8  # where states have not settled by then, the model forgets too slowly: one piece after another
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # change of states between two sweeps, relative to the largest


@dataclass(frozen=True)
class Evaluation:
    """loss: mean nats per token. by_position: perplexity at every position of a block, if asked for."""

    loss: float
    tokens: int
    by_position: list[float] | None = None

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)


def perplexity(mean_loss: float) -> float:
    """exp(mean nats per token); inf where that overflows."""
    return math.exp(mean_loss) if mean_loss < 700 else math.inf


def evaluate_tokens(
    model: LanguageModel,
    tokens: Tokens,
    block: int,
    *,
    by_position: bool = False,
    test_time: TestTime | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Every token but the first, predicted from all tokens before it.

    test_time: what to learn from every block once it has been predicted.
    tick: told (tokens done, all tokens) between pieces; what it raises ends the evaluation.
    """
    model = model if test_time is None else test_time.model(model)
    device = model.bias.device
    pairs = len(tokens) - 1
    size = block if test_time else max(block, STEPS // block * block)
    many = 1 if test_time else SIDE_BY_SIDE.get(device.type, SIDE_BY_SIDE["cuda"])
    state, end = model.zero_state(1), 0
    total = torch.zeros((), dtype=torch.float64, device=device)
    sums = torch.zeros(block, dtype=torch.float64, device=device)
    while end < pairs:
        begin, pieces = end, max(1, min(many, (pairs - end) // size))  # what is left at last is shorter
        ids = torch.from_numpy(tokens.read(begin, min(begin + pieces * size, pairs) + 1).astype(np.int64)).to(device)
        inputs, labels = ids[:-1].view(pieces, -1).t(), ids[1:]
        rolled = roll_out(model, inputs, state)
        if rolled is None:
            many = 1
            continue
        h, after = rolled
        for seen, label in zip(h.unbind(1), labels.chunk(pieces), strict=True):
            losses = token_losses(seen, model.weight, model.bias, label).double()
            total += losses.sum()
            if by_position:
                sums.index_add_(0, torch.arange(len(losses), device=device) % block, losses)
            end += len(losses)
            if tick is not None:
                tick(end, pairs)
        state = after if test_time is None else test_time.learn(model, inputs, labels, state, after)
    counts = [len(range(p, pairs, block)) for p in range(block)]
    positions = [perplexity(s / n) for s, n in zip(sums.tolist(), counts, strict=True) if n] if by_position else None
    return Evaluation(float(total) / pairs, pairs, positions)


def roll_out(model: LanguageModel, inputs: Tensor, start: Tensor) -> tuple[Tensor, Tensor] | None:
    """Eq. 1 over consecutive pieces of a text, side by side; None where their states do not settle in SWEEPS sweeps.

    inputs [B, k]: a piece is a column; start [1, d] of the first -> the top layer's h [B, k, H], the last state [1, d].
    """
    starts = torch.cat([start, model.zero_state(inputs.shape[1] - 1)])
    with torch.no_grad():
        for _ in range(SWEEPS):
            h, ends = model.unroll(inputs, starts)
            last, starts = starts, torch.cat([start, ends[:-1]])
            change = (starts - last).abs().amax()
            if not change > TOLERANCE[start.dtype] * ends.abs().amax():  # a NaN settles nothing, and is for the caller
                return h, ends[-1:]
    return None

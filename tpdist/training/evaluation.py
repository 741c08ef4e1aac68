"""Perplexity of the model rolled out over a whole split as one stream (Eq. 1), θ frozen but where asked otherwise."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from tpdist.data import Tokens
from tpdist.models import LanguageModel, token_losses
from tpdist.training.at_test_time import TestTime

STEPS = 1024  # tokens rolled out between two looks at the clock


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
    state = model.zero_state(1)
    total = torch.zeros((), dtype=torch.float64, device=device)
    sums = torch.zeros(block, dtype=torch.float64, device=device)
    for begin in range(0, pairs, size):
        end = min(begin + size, pairs)
        piece = torch.from_numpy(tokens.read(begin, end + 1).astype(np.int64)).to(device)
        inputs, labels = piece[:-1, None], piece[1:]
        with torch.no_grad():
            h, after = model.unroll(inputs, state)
        losses = token_losses(h[:, 0], model.weight, model.bias, labels).double()
        total += losses.sum()
        if by_position:
            sums.index_add_(0, torch.arange(len(losses), device=device) % block, losses)
        state = after if test_time is None else test_time.learn(model, inputs, labels, state, after)
        if tick is not None:
            tick(end, pairs)
    counts = [len(range(p, pairs, block)) for p in range(block)]
    positions = [perplexity(s / n) for s, n in zip(sums.tolist(), counts, strict=True) if n] if by_position else None
    return Evaluation(float(total) / pairs, pairs, positions)

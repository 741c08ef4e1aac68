"""Perplexity with θ frozen: the model rolled out over a whole split as one stream (Eq. 1)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tpdist.data import Tokens
from tpdist.models import LanguageModel, token_losses
from tpdist.tprop.objective import frozen

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


@dataclass(frozen=True)
class TestTimeSteps:
    """Optimise past h at test time (Section 4.1): steps, their size η, and the weight λ that ties h to ĥ."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    steps: int
    lr: float
    weight: float


def perplexity(mean_loss: float) -> float:
    """exp(mean nats per token); inf where that overflows."""
    return math.exp(mean_loss) if mean_loss < 700 else math.inf


def evaluate_tokens(
    model: LanguageModel,
    tokens: Tokens,
    block: int,
    *,
    by_position: bool = False,
    test_time: TestTimeSteps | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Every token but the first, predicted from all tokens before it.

    tick: told (tokens done, all tokens) between pieces; what it raises ends the evaluation.
    """
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
        state = after if test_time is None else _improved(model, test_time, inputs, labels, state)
        if tick is not None:
            tick(end, pairs)
    counts = [len(range(p, pairs, block)) for p in range(block)]
    positions = [perplexity(s / n) for s, n in zip(sums.tolist(), counts, strict=True) if n] if by_position else None
    return Evaluation(float(total) / pairs, pairs, positions)


def _improved(model: LanguageModel, options: TestTimeSteps, inputs: Tensor, labels: Tensor, start: Tensor) -> Tensor:
    """The state after a block, rolled out again from a start that was fitted to the block once its tokens were seen.

    A step lowers CE(h) + λ/2 ‖h - ĥ‖². Only tokens already predicted are used. start [1, d] -> [1, d].
    """
    h = start
    with frozen(model):
        for _ in range(options.steps):
            leaf = h.detach().requires_grad_()
            outputs, _ = model.unroll(inputs, leaf)
            cost = model.loss(outputs[:, 0], labels) + 0.5 * options.weight * (leaf - start).square().sum()
            (gradient,) = torch.autograd.grad(cost, leaf)
            h = leaf.detach() - options.lr * gradient
    with torch.no_grad():
        return model.unroll(inputs, h)[1]

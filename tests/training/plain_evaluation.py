"""A small model over seven types, and its losses by a plain loop."""

import numpy as np
import torch

from tpdist.config import Model, Run
from tpdist.data import ArrayTokens
from tpdist.models import LanguageModel, build_model

TYPES = 7


def make_model(cell: str = "gru", **options) -> LanguageModel:
    return build_model(Model(cell=cell, hidden=5, init=0.9, **options), Run(dtype="float64"), TYPES)


def make_tokens(count: int, seed: int = 0) -> ArrayTokens:
    return ArrayTokens(np.random.default_rng(seed).integers(TYPES, size=count).astype(np.uint8))


def plain_losses(model: LanguageModel, tokens: ArrayTokens) -> list[float]:
    """-log p of every token but the first, one after the other."""
    state, losses = model.zero_state(1), []
    with torch.no_grad():
        for now, following in zip(tokens.ids[:-1].tolist(), tokens.ids[1:].tolist(), strict=True):
            h, state = model.unroll(torch.tensor([[now]]), state)
            losses.append(-float(model.logits(h[0, 0]).log_softmax(0)[following]))
    return losses

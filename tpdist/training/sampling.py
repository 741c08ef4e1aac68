"""Text from a trained model."""

import math

import torch

from tpdist.data import EOS, UNK, Store
from tpdist.errors import ArgumentError
from tpdist.models import LanguageModel


def sample_text(
    model: LanguageModel, store: Store, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int
) -> str:
    """The prompt and `tokens` more, drawn from softmax(f(h) / temperature); temperature 0 takes the likeliest.

    top_k: draw from that many of the likeliest types. `<unk>` is never drawn. Raises ArgumentError for numbers that
    make no sense, DataError for a prompt that the vocabulary cannot spell.
    """
    if tokens < 1:
        raise ArgumentError("tokens", f"must be at least 1, got {tokens}")
    if not 0 <= temperature < math.inf:
        raise ArgumentError("temperature", f"must be a number of at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ArgumentError("top_k", f"must be at least 1, got {top_k}")
    if not 0 <= seed < 2**63:
        raise ArgumentError("seed", f"must be at least 0 and below 2^63, got {seed}")
    vocabulary = store.vocabulary
    ids = vocabulary.encode(store.tokenize(prompt)).tolist()
    given = ids or [vocabulary.index.get(EOS, 0)]
    generator = torch.Generator().manual_seed(seed)
    state = model.zero_state(1)
    pending = given
    with torch.no_grad():
        for _ in range(tokens):
            h, state = model.unroll(torch.tensor(pending, device=state.device)[:, None], state)
            logits = model.logits(h[-1, 0]).double().cpu()
            if UNK in vocabulary.index and len(vocabulary) > 1:
                logits[vocabulary.index[UNK]] = -torch.inf
            pending = [_draw(logits, temperature, top_k, generator)]
            ids += pending
    return vocabulary.decode(ids)


def _draw(logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits = logits.where(logits >= logits.topk(top_k).values[-1], -torch.inf)
    return int(torch.multinomial(torch.softmax((logits - logits.max()) / temperature, 0), 1, generator=generator))

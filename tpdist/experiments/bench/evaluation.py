"""`tpdist bench evaluation`: a split's perplexity, its pieces rolled out side by side, against one after another.

And what one of four workers takes that share it.
"""

from typing import Any

import torch

from tpdist.config import Model, Run
from tpdist.data import ArrayTokens
from tpdist.experiments.measure import Say, in_turns, medians, print_timings, report
from tpdist.experiments.plain import random_tokens
from tpdist.models import LanguageModel, build_model, token_losses
from tpdist.training.evaluation import STEPS, evaluate_tokens, share_of_loss

ROUNDS = 5
TOKENS = 65_537  # about those of Penn Treebank's validation split
BLOCK = 20


def bench(
    say: Say, device: str = "cpu", types: int = 10_000, hidden: int = 200, tokens: int = TOKENS, rounds: int = ROUNDS
) -> dict[str, Any]:
    """A GRU as it is at first, on random tokens: it forgets quickly, so that two sweeps settle its states."""
    model = build_model(Model(hidden=hidden), Run(), types).to(device)
    text = ArrayTokens(random_tokens(types, tokens).numpy())
    parts = {
        "side_by_side": lambda: evaluate_tokens(model, text, BLOCK).loss,
        "one_after_another": lambda: one_after_another(model, text),
    }
    losses = {name: part() for name, part in parts.items()}
    parts["one_of_four"] = lambda: share_of_loss(model, text, BLOCK, 1, 4).loss or 0.0
    say(", ".join(f"{name}: {loss:.9f} nats a token" for name, loss in losses.items()))
    timings = in_turns(parts, rounds, device, warm=0)
    print_timings(timings, say)
    time = medians(timings)
    ratios = {
        "evaluation_time": time["side_by_side"] / time["one_after_another"],
        "evaluation_share": time["one_of_four"] / time["side_by_side"],
    }
    config = {"types": types, "hidden": hidden, "tokens": tokens, "steps of a piece": STEPS}
    return report("evaluation", device, config, timings, ratios, say) | {"losses": losses}


def one_after_another(model: LanguageModel, tokens: ArrayTokens) -> float:
    """Mean loss in nats; the oracle."""
    ids = torch.from_numpy(tokens.ids).to(model.bias.device)
    state, total = model.zero_state(1), 0.0
    with torch.no_grad():
        for inputs, labels in zip(ids[:-1].split(STEPS), ids[1:].split(STEPS), strict=True):
            h, state = model.unroll(inputs[:, None], state)
            total += float(token_losses(h[:, 0], model.weight, model.bias, labels).double().sum())
    return total / (len(ids) - 1)

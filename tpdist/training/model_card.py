"""The README.md of an exported model: what it is, its figures, and how to use it without this package."""

from typing import Any

from tpdist.config import Experiment
from tpdist.data import Vocabulary

LOADING = """\
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

here = Path(".")  # the directory of this file
config = json.loads((here / "config.json").read_text(encoding="utf-8"))
vocabulary = json.loads((here / "vocabulary.json").read_text(encoding="utf-8"))


class LanguageModel(nn.Module):
    def __init__(self, cell, types, embedding, hidden, layers, **_):
        super().__init__()
        self.encoder = nn.Embedding(types, embedding)
        self.rnn = {"gru": nn.GRU, "lstm": nn.LSTM}[cell](embedding, hidden, layers)
        self.decoder = nn.Linear(hidden, types)

    def forward(self, tokens, state=None):  # [steps, texts] -> logits [steps, texts, types], state
        h, state = self.rnn(self.encoder(tokens), state)
        return self.decoder(h), state


model = LanguageModel(**config)
model.load_state_dict(load_file(here / "model.safetensors"))
tokens = torch.tensor([[vocabulary.index(word)] for word in WORDS])
logits, state = model(tokens)
print(vocabulary[logits[-1, 0].argmax()])
"""

TEXT = {
    "word": "Text is cut at white space into words; `<eos>` ends a line, and `<unk>` stands for every other word.",
    "char": "Text is cut into characters; `<eos>` ends a line.",
}

ONE_STEP = """
## ONNX

`step.onnx` is one step: `tokens` [N] (int64) and `state` [N, d] give `logits` [N, types] and `next_state` [N, d], for
any number N of texts side by side. The first state is zeros. A state holds all layers, an LSTM's h before its c.
"""


def model_card(config: Experiment, vocabulary: Vocabulary, figures: dict[str, Any], plain: bool, onnx: bool) -> str:
    """Markdown. plain: torch.nn has the cell, so that PyTorch alone loads the model."""
    model = config.model
    rows = "".join(f"| {name} | {value} |\n" for name, value in _rows(config, vocabulary, figures))
    if plain:
        loading = "PyTorch and safetensors are enough:\n\n```python\n" + LOADING + "```\n"
        loading = loading.replace("WORDS", repr(vocabulary.types[:3]))
    else:
        loading = (
            f"torch.nn has no {model.cell}. `tpdist` starts a run from it, with the settings in `config.json`: "
            "`model.init_from=model.safetensors`.\n"
        )
    return (
        f"# {config.run.name}\n\n"
        f"A recurrent language model ({model.cell}, {model.layers} x {model.hidden}) over {len(vocabulary):,} types of "
        f"level {vocabulary.level}, trained with tpdist ({config.method.known_as}).\n\n"
        f"| | |\n| --- | --- |\n{rows}\n"
        "Perplexity is exp(mean nats per token) with the state carried through the whole split. It depends on the "
        "vocabulary, so only models of one vocabulary can be compared by it.\n\n"
        "## Files\n\n"
        "`model.safetensors` holds the parameters, `vocabulary.json` the type of every id, `config.json` the sizes. "
        f"{TEXT[vocabulary.level]}\n\n"
        f"## Use\n\n{loading}{ONE_STEP if onnx else ''}"
    )


def _rows(config: Experiment, vocabulary: Vocabulary, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known: a run that has not ended has no figures for the test split yet."""
    names = {
        "valid_perplexity": "validation perplexity",
        "test_perplexity": "test perplexity",
        "unigram_perplexity": "validation perplexity of the unigram model",
    }
    method, objective, batching = config.method, config.objective, config.batching
    window = f"K={batching.blocks}" if batching.mode == "minibatch" else "batch mode"
    return [
        *((text, f"{figures[name]:.2f}") for name, text in names.items() if figures.get(name) is not None),
        *([("parameters", f"{figures['parameters']:,}")] if "parameters" in figures else []),
        ("corpus", f"{config.data.recipe}, level {vocabulary.level}"),
        ("method", f"{method.known_as}, B={objective.block}, S={batching.streams}, {window}"),
        ("optimiser", f"{config.optimizer.name}, learning rate {config.optimizer.lr:g}"),
        ("epoch", str(figures["epoch"])),
        ("seed", str(config.run.seed)),
    ]

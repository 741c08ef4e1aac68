"""Models for others, and from others: parameters under PyTorch's names, the vocabulary, a model card, ONNX.

An export names a GRU's and an LSTM's parameters as PyTorch's example `word_language_model` does: `encoder.weight`,
`rnn.weight_ih_l0`, `rnn.weight_hh_l0`, `rnn.bias_ih_l0`, `rnn.bias_hh_l0` (then `_l1` …), `decoder.weight`,
`decoder.bias`. Those of other cells keep their own names, `layers.0.<name>`.
"""

import logging
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpdist.config import Experiment
from tpdist.data import Vocabulary
from tpdist.errors import ConfigError, RunError, TpdistError, first_line
from tpdist.models import LanguageModel
from tpdist.models.cells import Cell
from tpdist.training.files import dump_json, load_tensors, read_json, save_tensors
from tpdist.training.kept_model import load_parameters, misfits
from tpdist.training.model_card import model_card

CONFIG, TENSORS, VOCABULARY, CARD, ONNX = (
    "config.json", "model.safetensors", "vocabulary.json", "README.md", "step.onnx"
)  # fmt: skip
WITHIN = (TENSORS, "best.safetensors", "models/best.safetensors")  # of an export, of a run's `models/`, of a run
PLAIN_CELLS = ("gru", "lstm")
OUTER = {"embedding.weight": "encoder.weight", "weight": "decoder.weight", "bias": "decoder.bias"}


def export_model(
    model: LanguageModel,
    vocabulary: Vocabulary,
    config: Experiment,
    figures: dict[str, Any],
    out: Path,
    onnx: bool = False,
) -> None:
    """Write the directory `out`, whole or not at all. figures: of `result.json`, for the model card.

    onnx: also one step of the model as `step.onnx`. Raises RunError where `out` exists or cannot be written,
    TpdistError where the extra `onnx` is not installed.
    """
    if out.exists():
        raise RunError(f"{out}: exists already and is not overwritten; give --out a new name")
    about = {
        "cell": config.model.cell,
        "types": len(vocabulary),
        "embedding": model.embedding.embedding_dim,
        "hidden": config.model.hidden,
        "layers": config.model.layers,
        "tied": config.model.tied,
        "level": vocabulary.level,
    }
    if config.model.activation is not None:
        about["activation"] = config.model.activation
    directory = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(directory, ignore_errors=True)  # what a killed export left would come along
        directory.mkdir(parents=True)
        dump_json(directory / CONFIG, about)
        save_tensors(to_plain(model), directory / TENSORS)
        dump_json(directory / VOCABULARY, vocabulary.types)
        card = model_card(config, vocabulary, figures, plain=config.model.cell in PLAIN_CELLS, onnx=onnx)
        (directory / CARD).write_text(card, encoding="utf-8")
        if onnx:
            export_step(model, directory / ONNX)
        directory.rename(out)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def to_plain(model: LanguageModel) -> dict[str, Tensor]:
    """The parameters under the names of an export; a tied head's matrix a second time."""
    tensors = {_plain_name(name): parameter.detach() for name, parameter in model.named_parameters()}
    if "encoder.weight" not in tensors:
        tensors["encoder.weight"] = tensors["decoder.weight"].clone()
    return tensors


def start_from(model: LanguageModel, file: str, vocabulary: Vocabulary) -> None:
    """Copy the parameters in `file` into `model`: of an export, of a run's `models/`, or of another program.

    A `vocabulary.json` beside it, as an export has one, must be the corpus's. Raises ConfigError, with the key.
    """
    key = "model.init_from"
    if Path(file).is_dir():
        inside = next((name for name in WITHIN if (Path(file) / name).is_file()), None)
        mend = f"{Path(file) / inside}, which is in it" if inside else "a safetensors file, such as an export's"
        raise ConfigError(f"{file}: is a directory; give {mend}", key)
    try:
        tensors = {_own_name(name): tensor for name, tensor in load_tensors(Path(file)).items()}
    except RunError as error:
        what = str(error).partition("; did")[0]
        raise ConfigError(f"{what}; give a safetensors file, such as an export's", key) from error
    if "embedding.weight" not in dict(model.named_parameters()) and "embedding.weight" in tensors:  # tied
        embedding = tensors.pop("embedding.weight")
        if not torch.equal(embedding, tensors.setdefault("weight", embedding)):
            raise ConfigError(f"{file}: its decoder.weight is not its encoder.weight; write model.tied: false", key)
    for name, got, wanted in misfits(model, tensors):
        raise ConfigError(
            f"{file}: {_plain_name(name)} is {got} there and {wanted} in this model; set model.cell, hidden, layers, "
            "embedding and tied, and the vocabulary, as they were for that file",
            key,
        )
    beside = Path(file).with_name(VOCABULARY)
    try:
        types = read_json(beside) if beside.is_file() else vocabulary.types
    except (OSError, ValueError) as error:
        raise ConfigError(f"{beside}: is no vocabulary of an export: {first_line(error)}", key) from error
    if types != vocabulary.types:
        raise ConfigError(f"{beside}: is another vocabulary than the corpus's; prepare the corpus as it was then", key)
    load_parameters(model, tensors, file)


def _plain_name(name: str) -> str:
    inner = re.fullmatch(r"layers\.(\d+)\.rnn\.(\w+)_l0", name)
    return f"rnn.{inner[2]}_l{inner[1]}" if inner else OUTER.get(name, name)


def _own_name(name: str) -> str:
    outer = {theirs: ours for ours, theirs in OUTER.items()}
    inner = re.fullmatch(r"rnn\.(\w+)_l(\d+)", name)
    return f"layers.{inner[2]}.rnn.{inner[1]}_l0" if inner else outer.get(name, name)


class Step(nn.Module):
    """One step of a model from elementary operations, for ONNX: tokens [N], state [N, d] -> logits [N, V], state."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x, states = self.model.embedding(tokens)[None], []
        for layer, start in zip(self.model.layers, state.split(self.model.sizes, -1), strict=True):
            assert isinstance(layer, Cell)
            if type(layer).step is Cell.step:
                x, last = layer(x, start)
            else:
                last = layer.step(layer.project(x)[0], start)
                x = last[None, :, : layer.hidden]
            states.append(last)
        return self.model.logits(x[0]), torch.cat(states, -1)


def export_step(model: LanguageModel, file: Path) -> None:
    """`Step` as an ONNX file: tokens, state -> logits, next_state, for any number N of texts side by side."""
    try:
        import onnxscript  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise TpdistError("onnx is not installed; pip install 'tpdist[onnx]'") from error
    any_number = torch.export.Dim("N", min=1)
    example = torch.zeros(2, dtype=torch.long), model.zero_state(2)
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of operators of packages that are not there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Step(model).eval(),
                example,
                dynamo=True,
                verbose=False,
                dynamic_shapes=({0: any_number}, {0: any_number}),
                input_names=["tokens", "state"],
                output_names=["logits", "next_state"],
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None
    program.save(file)

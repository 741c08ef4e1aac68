"""From the `model` part of the configuration to a model."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tpdist.config import Model, Run
from tpdist.errors import ConfigError
from tpdist.models.cells import GRU, LSTM, MRNN, Cell, Elman
from tpdist.models.language_model import LanguageModel

TOO_LARGE = re.compile("allocate memory|overflow", re.IGNORECASE)  # how torch says it
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}


def build_model(model: Model, run: Run, types: int) -> LanguageModel:
    """A model of `types` token types with parameters drawn from `run.seed`, on the CPU.

    Raises ConfigError with the key where an own cell cannot be loaded, or where memory is too small.
    """
    width = model.embedding or model.hidden
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        try:
            layers = [build_cell(model, width if i == 0 else model.hidden) for i in range(model.layers)]
            language_model = LanguageModel(types, width, layers, model.tied)
        except (RuntimeError, TypeError) as error:  # TypeError: a size above 2^63, as a GRU has of its matrices
            if not TOO_LARGE.search(str(error)):
                raise
            what = f"{types:,} types, embedding {width:,}, {model.layers:,} layers of {model.hidden:,}"
            key = "model.embedding" if width > model.hidden else "model.hidden"
            raise ConfigError(f"{what} do not fit into memory; take fewer", key) from error
        _draw(language_model, model)
    if run.dtype == "bfloat16":
        language_model.product_dtype = torch.bfloat16
    return language_model.to(DTYPES[run.dtype])


def build_cell(model: Model, inputs: int) -> Cell:
    """One layer that reads `inputs` numbers. Raises ConfigError where an own cell cannot be loaded or does not fit."""
    match model.cell:
        case "elman":
            return Elman(inputs, model.hidden, model.activation or "logistic")
        case "mrnn":
            return MRNN(inputs, model.hidden, model.activation or "tanh")
        case "gru":
            return GRU(inputs, model.hidden)
        case "lstm":
            return LSTM(inputs, model.hidden)
        case path:
            return _own_cell(path, inputs, model.hidden)


def imported(path: str, key: str) -> Any:
    """What the user's `package.module:name` names. Raises ConfigError about `key` where it cannot be loaded."""
    module_name, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:  # ValueError: an empty module name
        package = module_name.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        beside = "it lies here" if Path(f"{package}.py").is_file() else f"in the directory of {package}.py"
        hint = f"; {beside}: write PYTHONPATH=. before the command" if missing else ""
        raise ConfigError(f"cannot load {path!r}: {error}{hint}", key) from error


def _own_cell(path: str, inputs: int, hidden: int) -> Cell:
    found = imported(path, "model.cell")
    if not (inspect.isclass(found) and issubclass(found, Cell)):
        raise ConfigError(f"{path!r} is not a subclass of tpdist.models.Cell", "model.cell")
    if found.step is Cell.step and found.forward is Cell.forward:
        raise ConfigError(f"{path!r} has no step(x, state)", "model.cell")
    try:
        cell = found(inputs, hidden)
    except TypeError as error:
        raise ConfigError(f"{path!r} cannot be made from (inputs, hidden): {error}", "model.cell") from error
    again = cell  # as good as one made again where it has no buffer
    if any(True for _ in cell.buffers()):
        with torch.random.fork_rng(devices=[]):
            again = found(inputs, hidden)
    if wrong := _wrong_with(cell, again):
        raise ConfigError(f"{path!r}: {wrong}", "model.cell")
    return cell


def _wrong_with(cell: Cell, again: Cell) -> str | None:
    """What makes an own cell unfit, found by comparing it with one made again, and by steps of some states; or None."""
    for name, buffer in again.named_buffers():
        if not torch.equal(buffer, cell.get_buffer(name)):
            mend = "what is drawn must be a torch.nn.Parameter, if need be with requires_grad=False"
            mend += "; give torch's orthogonal use_trivialization=False" if ".parametrizations." in f".{name}" else ""
            return f"its buffer {name} is another every time, and no file keeps it; {mend}"
    steps, states = 1, 8
    x = torch.linspace(-1, 1, states * cell.inputs).reshape(steps, states, cell.inputs)
    kept = {name: buffer.clone() for name, buffer in cell.named_buffers()}
    outputs, last = cell(x, torch.zeros(states, cell.state_size))
    got, wanted = [tuple(outputs.shape), tuple(last.shape)], [(steps, states, cell.hidden), (states, cell.state_size)]
    if got != wanted:
        return (
            f"a step of {states} states gives h {got[0]} and a state {got[1]}; they must be {wanted[0]} and "
            f"{wanted[1]}: step(x, state) returns the next state [N, parts * hidden]"
        )
    must = "a cell must be a function of its input, its state and its parameters"
    state = last.detach().requires_grad_()  # one that a text leads to: others the cell need not bear
    last = cell(x, state)[1]
    if not torch.equal(last, cell(x, state)[1]):
        return f"two steps from the same state differ, as by dropout or noise; {must}"
    half = states // 2  # blocks lie side by side, as many as a chunk and a worker have
    if not torch.allclose(last[:half], cell(x[:, :half], state[:half])[1], 1e-3, 1e-4):
        return f"a step from a state depends on the states beside it, as by the mean of a batch; {must}"
    if type(cell).step is not Cell.step:  # a GRU's forward, inherited, would pass over a step in silence
        two = torch.cat([x, -x])
        if not torch.allclose(cell(two, state)[1], Cell.forward(cell, two, state)[1], 1e-3, 1e-4):
            return "its forward is not the loop over its step; write one that is, or forward = Cell.forward, that loop"
    for name, buffer in cell.named_buffers():
        if not torch.equal(buffer, kept[name]):
            return f"a step changes its buffer {name}, which no checkpoint keeps; {must}"
    if not last.requires_grad or torch.autograd.grad(last.sum(), state, allow_unused=True)[0] is None:
        return "no gradient comes from its next state to its state; step(x, state) has to use the state"
    return None


def _draw(language_model: LanguageModel, model: Model) -> None:
    """Uniform parameters: ±`init` for all. Else those that cells draw for themselves, a head's matrix of ±1/sqrt(H).

    Its bias is then 0, and the embedding ±0.1, which is the head's matrix too where they are tied.
    """
    if model.init is not None:
        for parameter in language_model.parameters():
            nn.init.uniform_(parameter, -model.init, model.init)
        return
    bound = model.hidden**-0.5
    nn.init.uniform_(language_model.weight, -bound, bound)
    nn.init.uniform_(language_model.embedding.weight, -0.1, 0.1)

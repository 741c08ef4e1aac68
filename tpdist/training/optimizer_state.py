"""The state of an optimiser as named tensors and JSON numbers, and back, to the bit."""

import inspect
import re
from typing import Any

import torch
from torch import Tensor

from tpdist.errors import RunError

KEY = re.compile(r"(\d+)\.(\w+)")


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and scalars by name. Parameters are numbered in their order."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            key = f"{prefix}{index}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                scalars[key] = value
    return tensors, scalars


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor], scalars: dict[str, Any], where: str = ""
) -> None:
    """The inverse of `pack_optimizer`, onto an optimiser of the same parameters.

    Raises RunError, naming `where`, for what an optimiser of this kind does not keep.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = _by_parameter(prefix, {**tensors, **scalars}, where)
    kept = _kept_by(optimizer)
    for index, values in state.items():
        if index >= len(parameters) or values.keys() != kept.keys():
            raise RunError(f"{where}: {prefix}{index}: not the state of torch.optim.{type(optimizer).__name__}")
        for name, value in values.items():
            wanted = parameters[index].shape if kept[name] else torch.Size([])
            if getattr(value, "shape", torch.Size([])) != wanted:
                raise RunError(f"{where}: {prefix}{index}.{name}: not of the shape {tuple(wanted)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for index, values in state.items():  # torch casts scalars such as NAdam's mu_product to the parameters' dtype
        loaded = optimizer.state[parameters[index]]
        for name, value in values.items():
            if isinstance(value, Tensor):
                loaded[name] = loaded[name].to(value.dtype)


def _by_parameter(prefix: str, named: dict[str, Any], where: str) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in named.items():
        if key.startswith(prefix):
            found = KEY.fullmatch(key.removeprefix(prefix))
            if found is None:
                raise RunError(f"{where}: {key!r}: not an optimiser's state")
            state.setdefault(int(found[1]), {})[found[2]] = value
    return state


def _kept_by(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """What an optimiser of this class and options keeps of a parameter, and whether that has the parameter's shape."""
    number = torch.nn.Parameter(torch.zeros(2))
    number.grad = torch.zeros(2)
    known = inspect.signature(type(optimizer)).parameters.keys() - {"params", "capturable"}  # the probe is on a CPU
    options = {name: value for name, value in optimizer.param_groups[0].items() if name in known}
    probe = type(optimizer)([number], **options)
    probe.step()
    return {name: getattr(value, "shape", None) == number.shape for name, value in probe.state[number].items()}

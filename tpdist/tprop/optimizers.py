"""Optimisers by `torch.optim` name, for θ and for H."""

import inspect
import json
from functools import cache
from typing import Any, get_args

import torch

from tpdist.config import Optimizer
from tpdist.config.parts import OptimizerName
from tpdist.errors import ConfigError, first_line
from tpdist.tprop.plan import HStep

_IN_TORCH = {name.lower(): found for name, found in vars(torch.optim).items() if isinstance(found, type)}
CLASSES: dict[str, type[torch.optim.Optimizer]] = {name: _IN_TORCH[name] for name in get_args(OptimizerName)}


def build_optimizer(
    spec: Optimizer | HStep,
    parameters: list[torch.Tensor],
    key: str,
    fused: bool = False,
    capturable: bool = False,
) -> torch.optim.Optimizer:
    """The optimiser `spec.name` with `spec.options`. Raises ConfigError at the option it does not take.

    fused: one kernel for the whole step where torch has it and the options do not ask for another way. capturable: a
    step in a CUDA graph, where torch's class has to be told.
    """
    cls = CLASSES[spec.name]
    known = [name for name in inspect.signature(cls).parameters if name not in ("params", "lr")]
    options: dict[str, Any] = dict(spec.options)
    for name in options:
        if name not in known:
            raise ConfigError(
                f"torch.optim.{cls.__name__} takes no {name!r}; it takes {', '.join(known)}", f"{key}.options.{name}"
            )
    if fused and "fused" in known and not {"foreach", "fused", "differentiable"} & options.keys():
        options["fused"] = all(_has_fused(spec.name, device) for device in {p.device.type for p in parameters})
    if capturable and "capturable" in known:
        options["capturable"] = True
    try:
        return cls(parameters, lr=spec.lr, **options)  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise refused(spec, key, error) from error


def refused(spec: Optimizer | HStep, key: str, error: Exception) -> ConfigError:
    """What to say where torch does not take the options: the one that is to blame if there is one, or all."""
    reason = f"torch.optim.{CLASSES[spec.name].__name__}: {first_line(error)}"
    given = {name: json.dumps(value) for name, value in spec.options.items()}
    if len(given) == 1:
        ((name, value),) = given.items()
        return ConfigError(reason if value in reason else f"{reason}; got {value}", f"{key}.options.{name}")
    listed = ", ".join(f"{name}: {value}" for name, value in given.items())
    return ConfigError(f"{reason}; got {listed}" if given else reason, f"{key}.options")


@cache
def _has_fused(name: str, device: str) -> bool:
    """Whether this torch has the kernel there: 2.11 has none of Adagrad for CUDA, and says so at the first step."""
    number = torch.nn.Parameter(torch.zeros(1, device=device))
    number.grad = torch.zeros(1, device=device)
    try:
        CLASSES[name]([number], lr=1.0, fused=True).step()  # type: ignore[call-arg]
    except RuntimeError:
        return False
    return True


def state_of(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What the optimiser keeps of a parameter: moments of its shape, and numbers of steps and such."""
    moments, counts = {}, {}
    for name, value in optimizer.state[parameter].items():
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            moments[name] = value
        elif value is not None:
            counts[name] = float(value)
    return moments, counts


def put_state(
    optimizer: torch.optim.Optimizer,
    parameter: torch.Tensor,
    moments: dict[str, torch.Tensor],
    counts: dict[str, float],
) -> None:
    """The inverse of `state_of`. The moments are not copied: the optimiser's next step changes them."""
    numbers = {name: count(value, optimizer, parameter.device) for name, value in counts.items()}
    optimizer.state[parameter].update(numbers | moments)


def count(value: float, optimizer: torch.optim.Optimizer, device: torch.device) -> torch.Tensor:
    """A number of steps in an optimiser's state, where it is read: on a GPU by a kernel of the whole step alone."""
    group = optimizer.param_groups[0]
    return torch.tensor(value, device=device if group.get("fused") or group.get("capturable") else "cpu")

"""What is looked at before a run: the device, and options that only torch can judge."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tpdist.config import Experiment, Optimizer, Run
from tpdist.errors import ConfigError
from tpdist.tprop import Plan
from tpdist.tprop.optimizers import build_optimizer, refused
from tpdist.tprop.plan import HStep


def device_name(device: torch.device) -> str:
    """cpu, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def pick_device(config: Experiment) -> torch.device:
    """The device of `run.device`. Raises ConfigError where there is none."""
    name = config.run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device here; write cpu or auto", "run.device")
    return torch.device(name)


def set_kernels(run: Run) -> None:
    """`run.tf32`: a GPU may round the factors of float32 matrix products, in cuBLAS and in cuDNN's recurrences.
    `run.deterministic`: only kernels that repeat to the bit.
    """
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may not repeat itself
        torch.use_deterministic_algorithms(True)
    precision = "tf32" if run.tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.rnn.fp32_precision = precision  # type: ignore[attr-defined]


@contextmanager
def settings_kept() -> Iterator[None]:
    """Afterwards what `set_kernels` sets is as it was."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    precisions = [place.fp32_precision for place in places]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for place, precision in zip(places, precisions, strict=True):
            place.fp32_precision = precision


def try_optimizers(config: Experiment, plan: Plan, device: torch.device) -> None:
    """One step of each optimiser on a number. Raises ConfigError for options that torch refuses."""
    specs: list[tuple[Optimizer | HStep, str]] = [(config.optimizer, "optimizer")]
    if plan.moves_targets:
        specs.append((plan.h, "method.h_optimizer"))
    for spec, key in specs:
        number = torch.nn.Parameter(torch.zeros(1, device=device))
        number.grad = torch.zeros(1, device=device)
        try:
            build_optimizer(spec, [number], key, fused=spec is config.optimizer).step()  # as theirs is built
        except ConfigError:
            raise
        except Exception as error:
            raise refused(spec, key, error) from error

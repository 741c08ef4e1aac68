"""θ-gradients of the problems of long memory, for their tests."""

import math

import torch
from torch import Tensor

from tpdist.config import Experiment
from tpdist.experiments.memory import Problem
from tpdist.models import LanguageModel
from tpdist.tprop import Alone, Boundaries, Theta, make_window, plan_epoch, visit


class StillTheta(Theta):
    """Leaves the gradient where it is, and the parameters too."""

    def step(self, tokens: int, states: dict[str, Tensor] | None = None) -> None: ...


def gradient(
    problem: Problem, method: dict, block: int, steps: int, streams: int, chunk_tokens: int = 65536
) -> tuple[list[Tensor], LanguageModel, Tensor, Tensor]:
    """The undivided θ-gradient of a visit to one window, in float64; the model, inputs and labels [B, S, k]."""
    config = Experiment.model_validate(
        {
            "method": method,
            "objective": {"block": block, "weight": 0.0},
            "batching": {"chunk_tokens": chunk_tokens},
            "optimizer": {"name": "sgd", "clip": None},
        }
    )
    torch.manual_seed(0)
    model = problem.model(5, steps).double()
    torch.nn.init.normal_(model.weight)  # a head of zeros would pass no gradient on
    inputs, answers = problem.sequences(streams, steps, torch.Generator().manual_seed(3))
    if inputs.is_complex():
        inputs, answers = inputs.to(torch.complex128), answers.double()
    cut, labels = problem.in_blocks(inputs, answers, block)
    window = make_window(cut, labels, torch.float64, tokens=answers.numel(), opens=True)
    plan, theta = plan_epoch(config, 1, steps // block), StillTheta(model, config.optimizer)
    boundaries = Boundaries.for_plan(plan, streams, steps // block, model)
    out = visit(model, plan, theta, window, 0, boundaries, model.zero_state(streams), Alone())
    assert math.isfinite(float(out.loss))
    gradients = gradients_of(model)
    model.zero_grad()
    return gradients, model, cut, labels


def gradients_of(model: LanguageModel) -> list[Tensor]:
    """By parameter, 0 where there is none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]

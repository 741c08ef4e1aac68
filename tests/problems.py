"""Small problems in float64, with the plain full-BPTT gradient as the oracle."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tpdist.config import Experiment
from tpdist.models import IGNORED, LanguageModel, build_model
from tpdist.tprop import Plan, Theta, Window, make_window, plan_epoch

STREAMS, BLOCKS, BLOCK, TYPES, HIDDEN = 2, 4, 5, 11, 6


def experiment(**parts: dict[str, Any]) -> Experiment:
    base: dict[str, dict[str, Any]] = {
        "model": {"hidden": HIDDEN, "init": 0.7},
        "objective": {"block": BLOCK},
        "batching": {"streams": STREAMS, "blocks": BLOCKS},
        "optimizer": {"name": "sgd", "lr": 1e-3, "clip": None},
        "run": {"dtype": "float64"},
    }
    for part, values in parts.items():
        base[part] = {**base.get(part, {}), **values}
    return Experiment.model_validate(base)


class Problem:
    """A model, a plan and a window; θ does not move (`Theta.step` is replaced), so gradients stay readable."""

    def __init__(self, **parts: dict[str, Any]):
        self.config = experiment(**parts)
        self.model: LanguageModel = build_model(self.config.model, self.config.run, TYPES)
        self.plan: Plan = plan_epoch(self.config, 1, BLOCKS)
        self.theta = StillTheta(self.model, self.config.optimizer)
        B, S, K = self.config.objective.block, STREAMS, BLOCKS
        generator = torch.Generator().manual_seed(1)
        stream = torch.randint(TYPES, (S, K * B + 1), generator=generator)
        blocks = lambda x: x.view(S, K, B).permute(2, 0, 1)  # noqa: E731
        self.stream = stream
        self.carried = torch.rand(S, self.model.state_size, generator=generator, dtype=torch.float64)
        method = self.config.method
        self.window: Window = make_window(
            blocks(stream[:, :-1].contiguous()),
            blocks(stream[:, 1:].contiguous()),
            torch.float64,
            tokens=S * K * B,
            opens=False,
            edge_free=method.edge_free,
            closing=method.closing,
        )

    def replan(self, **changes: Any) -> None:
        self.plan = replace(self.plan, **changes)

    def gradients(self) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.model.parameters()]

    def bptt_gradients(self, reach: int) -> list[Tensor]:
        """Mean-loss θ-gradient of BPTT whose every block's loss reaches `reach` blocks (itself included)."""
        self.model.zero_grad()
        states = [self.carried]
        total = torch.zeros((), dtype=torch.float64)
        for i in range(BLOCKS):
            with torch.no_grad():
                states.append(self.model.unroll(self.window.inputs[:, :, i], states[-1])[1])
        for i in range(BLOCKS):
            state = states[max(0, i - reach + 1)].detach()
            for j in range(max(0, i - reach + 1), i + 1):
                h, state = self.model.unroll(self.window.inputs[:, :, j], state)
            total = total + self.model.loss(h, self.window.labels[:, :, i])
        (total / self.window.tokens).backward()
        return self.gradients()


class StillTheta(Theta):
    """Divides like `Theta`, and leaves the parameters where they are."""

    def step(self, tokens: int, states: dict[str, Tensor] | None = None) -> None:
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad / tokens


def relative_error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest error of any parameter, relative to the largest gradient of that parameter."""
    errors = [(a - b).abs().max() / b.abs().max().clamp(min=1e-300) for a, b in zip(got, wanted, strict=True)]
    return float(torch.stack(errors).max())  # a NaN is the largest, which `max` would pass over


def make_stream(streams: int, steps: int, types: int, seed: int = 5) -> Tensor:
    """Token ids [streams, steps + 1]: a next token is wanted for every step."""
    return torch.randint(types, (streams, steps + 1), generator=torch.Generator().manual_seed(seed))


def blocks_of(stream: Tensor, block: int, missing: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and labels [B, S, K] of a stream [S, K * B + 1]; `missing` labels are wanting at the last stream's end."""
    S, steps = stream.shape[0], stream.shape[1] - 1
    inputs, labels = (
        x.reshape(S, steps // block, block).permute(2, 0, 1).contiguous() for x in (stream[:, :-1], stream[:, 1:])
    )
    for step in range(steps - missing, steps):
        labels[step % block, -1, step // block] = IGNORED
    return inputs, labels


def windows_of(stream: Tensor, block: int, blocks: int, missing: int = 0, **options: Any) -> list[Window]:
    """The stream [S, steps + 1] in windows of `blocks` blocks; the last may be shorter. missing: `blocks_of`."""
    inputs, labels = blocks_of(stream, block, missing)
    windows = []
    for begin in range(0, inputs.shape[2], blocks):
        here = slice(begin, begin + blocks)
        windows.append(
            make_window(
                inputs[:, :, here],
                labels[:, :, here],
                torch.float64,
                tokens=int((labels[:, :, here] != IGNORED).sum()),
                opens=begin == 0,
                **options,
            )
        )
    return windows

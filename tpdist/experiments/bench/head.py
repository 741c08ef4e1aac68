"""`tpdist bench head`: the head's loss and gradients against `linear` + `cross_entropy`, in time and in memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tpdist.experiments.measure import Peak, Say, in_own_process, in_turns, medians, print_timings, report
from tpdist.experiments.plain import random_tokens
from tpdist.models import cross_entropy
from tpdist.models.products import linear, weight_gradient

ROUNDS = 5
MANY, FEW = 20_000, 640
EACH = {MANY: 1, FEW: 10}  # passes in one timing
Loss = Callable[..., Tensor]  # of h, weight, bias, labels


def plain(h: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(h, weight, bias), labels, reduction="sum")


def chunked_by_torch(h: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """torch from 2.13 on."""
    options = torch.nn.LinearCrossEntropyOptions()
    return functional.linear_cross_entropy(h, weight, labels, linear_bias=bias, reduction="sum", options=options)


def plain_bfloat16(h: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """What torch's autocast makes of it: products in bfloat16, the cross entropy in float32."""
    with torch.autocast(h.device.type, torch.bfloat16):
        return plain(h, weight, bias, labels)


def losses() -> dict[str, Loss]:
    """By name; those in bfloat16 are `run.dtype: bfloat16` and its peer."""
    found: dict[str, Loss] = {"plain": plain, "head": cross_entropy}
    found |= {"bfloat16": partial(cross_entropy, dtype=torch.bfloat16), "plain_bfloat16": plain_bfloat16}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        found["linear_cross_entropy"] = chunked_by_torch
    return found


def bench(
    say: Say, device: str = "cpu", types: int = 10_000, hidden: int = 200, many: int = MANY, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Forward and backward at 20,000 tokens and at 640; `floor` is the matrix products alone."""
    timings: dict[str, dict[str, list[float]]] = {}
    ratios: dict[str, float] = {}
    for tokens, mark in ((many, ""), (FEW, "_640")):
        leaves, labels = _inputs(tokens, types, hidden, device)
        parts: dict[str, Callable[[], object]] = {
            name: partial(_pass, loss, leaves, labels) for name, loss in losses().items()
        }
        parts["floor"] = partial(_products, *(leaf.detach() for leaf in leaves))
        say(f"{tokens:,} tokens")
        timings[str(tokens)] = in_turns(parts, rounds, device, EACH.get(tokens, 1))
        print_timings(timings[str(tokens)], say)
        time = medians(timings[str(tokens)])
        for name in parts:
            if name not in ("plain", "floor"):
                ratios["time" + mark + ("" if name == "head" else f"_{name}")] = time[name] / time["plain"]
        ratios["floor" + mark] = time["floor"] / time["plain"]  # if only the matrix products took time
    peaks = {name: in_own_process(peak, name, many, types, hidden, device) for name in losses()}
    for name, value in peaks.items():
        say(f"{name}: {value / 2**20:,.1f} MiB beyond inputs, parameters and their gradients")
    for name in peaks:
        if name != "plain":
            ratios["memory" + ("" if name == "head" else f"_{name}")] = peaks[name] / peaks["plain"]
    config = {"types": types, "hidden": hidden, "tokens": [many, FEW], "passes a timing": {many: 1, FEW: EACH[FEW]}}
    return report("head", device, config, timings, ratios, say) | {"peak_bytes": peaks}


def peak(name: str, tokens: int, types: int, hidden: int, device: str) -> int:
    """Bytes of one pass beyond inputs, parameters and their gradients, which exist before it; for a fresh process."""
    leaves, labels = _inputs(tokens, types, hidden, device)
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf) + 0.0  # written, so that its pages are there
    loss = losses()[name]
    few, few_labels = _inputs(8, types, hidden, device)
    _pass(loss, few, few_labels)  # libraries, their buffers, threads
    del few, few_labels
    used = Peak(device)
    loss(*leaves, labels).backward()
    return used.bytes()


def _products(h: Tensor, weight: Tensor, bias: Tensor) -> None:
    """The three matrix products of a pass, in chunks of 640 tokens, and nothing else."""
    grad_weight = torch.zeros_like(weight)
    for part in h.split(FEW):
        logits = linear(part, weight, bias)
        _ = linear(logits, weight.t())
        grad_weight += weight_gradient(logits, part)


def _inputs(tokens: int, types: int, hidden: int, device: str) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    bound = hidden**-0.5
    shapes = ((tokens, hidden), (types, hidden), (types,))
    leaves = [
        ((torch.rand(*shape, generator=generator) * 2 - 1) * (1.0 if i == 0 else bound)).to(device).requires_grad_()
        for i, shape in enumerate(shapes)
    ]
    return leaves, random_tokens(types, tokens, device=device)


def _pass(loss: Loss, leaves: list[Tensor], labels: Tensor) -> None:
    for leaf in leaves:
        leaf.grad = None
    loss(*leaves, labels).backward()

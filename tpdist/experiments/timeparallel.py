"""`tpdist bench timeparallel`: one gradient through the recurrence over a long text, all blocks at once, against BPTT.

The text is cut into blocks. Relaxation finds the states at their starts and costate sweeps what the loss after a
block says of the state at its end, both for all blocks in parallel (`tprop/states.py`, `tprop/costate.py`); one pass
over all blocks then gives the gradient (README, "The method"). A recurrence forgets, so what stands at a boundary
depends on few steps beside it: a sweep reads `reach` steps of every block, and the reach is doubled until what it
finds changes by less than `TOLERANCE`. Where it comes to the whole block, sweeps of whole blocks go on from there.

The loss is Σ ⟨v_t, h_t⟩ with drawn v: the head, the same in both, is left out.

Shape letters: `tprop/window.py`; T tokens.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpdist.config import Model, Run
from tpdist.experiments.measure import Say, in_turns, medians, print_timings, report, wait_for
from tpdist.experiments.plain import random_tokens
from tpdist.models import LanguageModel, build_model

LENGTHS = tuple(2**n for n in range(10, 18))
ROUNDS = 5
TOLERANCE = 1e-4  # change of states and costates between two sweeps, relative to their norm
FIRST_REACH = 16
SIDE_BY_SIDE = {"cpu": 256, "cuda": 4096}  # blocks; enough rows for a matrix product to run at full rate
SHORTEST = 64  # steps in a block
TORCH_UP_TO = 2**15  # tokens for which torch's own GRU is timed: its graph takes gigabytes at 2^17


@dataclass
class Cost:
    """Sweeps taken, and passes over the text that they come to: a sweep that reads half of every block counts ½."""

    sweeps: int = 0
    passes: float = 0.0


def bench(
    say: Say, device: str = "cpu", hidden: int = 200, lengths: tuple[int, ...] = LENGTHS, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Cost against length; the longest in turns, the others once."""
    model = build_model(Model(hidden=hidden), Run(), 10_000).to(device)
    model.embedding.requires_grad_(False)
    rows: list[dict[str, Any]] = []
    timings: dict[str, list[float]] = {}
    say(f"{'tokens':>9}  {'B':>5}  sweeps: states, costates  passes  {'BPTT s':>8}  parallel s  speed-up     error")
    for tokens in lengths:
        ids = random_tokens(10_000, tokens, device=device)
        up = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(1)).to(device)
        blocks = cut(tokens, device)
        costs = (Cost(), Cost())
        error = relative_error(in_parallel(model, ids, up, blocks, *costs), sequential(model, ids, up))
        parts: dict[str, Callable[[], object]] = {
            "sequential": lambda ids=ids, up=up: sequential(model, ids, up),
            "parallel": lambda ids=ids, up=up, blocks=blocks: in_parallel(model, ids, up, blocks),
        }
        longest = tokens == lengths[-1]
        timings = in_turns(parts, rounds if longest else 1, device, warm=0)
        least = medians(timings)
        row = {
            "tokens": tokens,
            "B": tokens // blocks,
            "sweeps": [cost.sweeps for cost in costs],
            "passes": sum(cost.passes for cost in costs),
            "sequential_s": least["sequential"],
            "parallel_s": least["parallel"],
            "error": error,
        }
        if device == "cpu" and tokens <= TORCH_UP_TO:
            row["torch_s"] = _timed(lambda ids=ids, up=up: torchs(model, ids, up), device)
        rows.append(row)
        say(
            f"{tokens:>9,}  {row['B']:>5}  {costs[0].sweeps:>14}, {costs[1].sweeps:>8}  {row['passes']:>6.2f}  "
            f"{row['sequential_s']:>8.3f}  {row['parallel_s']:>10.3f}  "
            f"{row['sequential_s'] / row['parallel_s']:>8.2f}  {error:>8.1e}"
            + (f"   torch's GRU {row['torch_s']:.3f} s" if "torch_s" in row else "")
        )
    print_timings(timings, say)
    longest = lengths[-1]
    ratios = {
        f"speedup_{longest}": rows[-1]["sequential_s"] / rows[-1]["parallel_s"],
        f"error_{longest}": rows[-1]["error"],
    }
    config = {"cell": "gru", "hidden": hidden, "tolerance": TOLERANCE, "lengths": list(lengths)}
    return report("timeparallel", device, config, timings, ratios, say) | {"rows": rows}


def cut(tokens: int, device: str) -> int:
    """How many blocks: as many as fill the device, but none shorter than `SHORTEST` steps."""
    return max(1, min(SIDE_BY_SIDE[device], tokens // SHORTEST))


def sequential(model: LanguageModel, ids: Tensor, up: Tensor) -> list[Tensor]:
    """BPTT over the whole text [T]; up [T, H]: the gradient of the loss at every h. -> that of the recurrence's θ."""
    h, _ = model.unroll(ids[:, None], model.zero_state(1))
    return list(torch.autograd.grad(h, _parameters(model), up[:, None]))


def torchs(model: LanguageModel, ids: Tensor, up: Tensor) -> list[Tensor]:
    """The same through `nn.GRU`."""
    h, _ = model.layers[0].rnn(model.embedding(ids[:, None]))  # type: ignore[operator]
    return list(torch.autograd.grad(h, _parameters(model), up[:, None]))


def in_parallel(
    model: LanguageModel, ids: Tensor, up: Tensor, blocks: int, states: Cost | None = None, costates: Cost | None = None
) -> list[Tensor]:
    """The same with all blocks at once. states, costates: are told what the sweeps cost."""
    inputs = ids.view(blocks, -1).t().contiguous()  # [B, k]
    above = up.view(blocks, -1, up.shape[1]).transpose(0, 1).contiguous()  # [B, k, H]

    def relax(start: Tensor, reach: int) -> Tensor:
        with torch.no_grad():
            return _shifted(model.unroll(inputs[-reach:], start)[1], 1)

    start = _settle(relax, model.zero_state(blocks), len(inputs), states or Cost())

    def sweep(costate: Tensor, reach: int) -> Tensor:
        leaf = start.detach().requires_grad_()
        h, prediction = model.unroll(inputs[:reach], leaf)
        return torch.autograd.grad((h, prediction), leaf, (above[:reach], _shifted(costate, -1)))[0]

    costate = _settle(sweep, model.zero_state(blocks), len(inputs), costates or Cost())
    h, prediction = model.unroll(inputs, start)
    return list(torch.autograd.grad((h, prediction), _parameters(model), (above, _shifted(costate, -1))))


def _settle(sweep: Callable[[Tensor, int], Tensor], zero: Tensor, steps: int, cost: Cost) -> Tensor:
    """Sweeps of a growing reach from 0, then of whole blocks from where they are, until the change is small."""
    reach, value = min(FIRST_REACH, steps), zero
    for _ in range(2 * steps):
        last, value = value, sweep(value if reach == steps else zero, reach)
        cost.sweeps += 1
        cost.passes += reach / steps
        if cost.sweeps > 1 and float((value - last).norm()) <= TOLERANCE * float(value.norm()):
            break
        reach = min(2 * reach, steps)
    return value


def _shifted(values: Tensor, by: int) -> Tensor:
    """[k, d]: what ends block i to the start of block i+1 (by = 1), or the other way; 0 at the text's end."""
    moved = torch.zeros_like(values)
    if by > 0:
        moved[1:] = values[:-1]
    else:
        moved[:-1] = values[1:]
    return moved


def _parameters(model: LanguageModel) -> list[Tensor]:
    return list(model.layers.parameters())


def relative_error(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest over parameters, each of norms."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True))


def _timed(part: Callable[[], object], device: str) -> float:
    wait_for(device)
    began = time.perf_counter()
    part()
    wait_for(device)
    return time.perf_counter() - began

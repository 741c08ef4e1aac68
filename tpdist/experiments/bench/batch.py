"""`tpdist bench batch`: batch mode's share of the machine's own matrix-multiply rate, and how its memory grows.

One window holds the whole text, ADMM on persistent states updates it (Section 2.1 of the paper). The share counts the
matrix products that such an update cannot do without. Memory is measured in processes of their own; what may grow
with the text is what belongs to it: H, U, the state of H's optimiser, the token ids. `memory_growth` is that of
`batching.recompute`, which keeps no more than these; what it costs in time is printed too.
"""

from functools import partial
from typing import Any

import torch

from tpdist.config import Experiment
from tpdist.experiments.costs import operations_per_token, rolled_once, shape_of
from tpdist.experiments.measure import Peak, Say, in_own_process, in_turns, medians, print_timings, report
from tpdist.experiments.plain import random_tokens
from tpdist.models import build_model
from tpdist.models.products import linear
from tpdist.tprop import Alone, Boundaries, Theta, make_window, plan_epoch, visit
from tpdist.training.heap import keep_freed_memory

TOKENS = {"cpu": 100_000, "cuda": 929_580}
CHUNK = {"cpu": 4_096, "cuda": 16_384}  # tokens worked on at once; on a CPU more are no faster
GROWN = {"cpu": (100_000, 1_000_000), "cuda": (1_000_000, 10_000_000)}
FEW_TYPES = 1_000  # of the memory's part: what grows with the text does not depend on them
BLOCK = 20
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product gives the machine's rate
ROUNDS = 5


class BatchUpdate:
    """An ADMM update over a text of random tokens in one window."""

    def __init__(self, tokens: int, types: int, hidden: int, device: str, recompute: bool = False):
        self.blocks = tokens // BLOCK
        self.config = Experiment.model_validate(
            {
                "model": {"hidden": hidden},
                "objective": {"block": BLOCK},
                "method": {"name": "admm", "first": "persistent", "h_optimizer": {"name": "adagrad", "lr": 0.1}},
                "batching": {
                    "mode": "batch",
                    "streams": 1,
                    "chunk_tokens": CHUNK[device],
                    "recompute": recompute,
                },
            }
        )
        self.model = build_model(self.config.model, self.config.run, types).to(device)
        self.plan, self.theta = plan_epoch(self.config, 1, self.blocks), Theta(self.model, self.config.optimizer)
        self.device, self.types = device, types

    def load(self) -> None:
        """The text, H and U."""
        shape = (BLOCK, 1, self.blocks)
        inputs, labels = (random_tokens(self.types, *shape, device=self.device, seed=i) for i in range(2))
        self.window = make_window(inputs, labels, torch.float32, tokens=inputs.numel(), opens=True)
        self.boundaries = Boundaries.for_plan(self.plan, 1, self.blocks, self.model)
        self.carried = self.model.zero_state(1)

    def __call__(self) -> None:
        visit(self.model, self.plan, self.theta, self.window, 0, self.boundaries, self.carried, Alone())

    def operations(self) -> float:
        """Floating-point operations of the matrix products that an update cannot do without."""
        tokens = self.blocks * BLOCK
        once = rolled_once(self.plan, tokens, self.config.batching.chunk_tokens, whole=True)
        return tokens * operations_per_token(shape_of(self.config, self.types), self.plan, once)

    def own_bytes(self) -> int:
        """Of H, U, the state of H's optimiser, token ids."""
        held = [*self.boundaries.tensors().values(), self.window.inputs, self.window.labels]
        return sum(tensor.nbytes for tensor in held)


def bench(
    say: Say,
    device: str = "cpu",
    types: int = 10_000,
    hidden: int = 200,
    tokens: int | None = None,
    grown: tuple[int, int] | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """The share from interleaved timings; the growth from two processes, with `batching.recompute` and without."""
    tokens, grown = tokens or TOKENS[device], grown or GROWN[device]
    keep_freed_memory()  # as a worker does
    update = BatchUpdate(tokens, types, hidden, device)
    leaner = BatchUpdate(tokens, types, hidden, device, recompute=True)
    update.load()
    leaner.load()
    side = torch.randn(SIDE[device], SIDE[device], device=device)
    parts = {"update": update, "recomputed": leaner, "matmul": partial(linear, side, side)}
    timings = in_turns(parts, rounds, device, warm=1)
    print_timings(timings, say)
    time = medians(timings)
    rate = 2 * SIDE[device] ** 3 / time["matmul"]
    share = update.operations() / time["update"] / rate
    say(f"matrix products at {rate / 1e9:,.1f} GFLOP/s")
    ratios = {"batch_matmul_share": share, "recomputed_over_kept": time["recomputed"] / time["update"]}
    memory: dict[str, list[tuple[int, int]]] = {}
    say("tokens      peak MiB  of which H, U, optimiser, ids")
    for name, recompute in (("memory_growth", True), ("memory_growth_kept", False)):
        memory[name] = [in_own_process(peak, size, FEW_TYPES, hidden, device, recompute) for size in grown]
        for size, (most, own) in zip(grown, memory[name], strict=True):
            say(f"{size:>10,}  {most / 2**20:>8.1f}  {own / 2**20:.1f}{'  recomputed' if recompute else ''}")
        (small, small_own), (large, large_own) = memory[name]
        ratios[name] = (large - small) / (large_own - small_own)
    config = update.config.model_dump(mode="json") | {"types": types, "tokens": tokens, "grown": list(grown)}
    return report("batch", device, config, timings, ratios, say) | {"memory": memory}


def peak(tokens: int, types: int, hidden: int, device: str, recompute: bool) -> tuple[int, int]:
    """Most bytes in use during two updates, beyond model and libraries; bytes of what belongs to the text."""
    keep_freed_memory()
    update = BatchUpdate(tokens, types, hidden, device, recompute)
    warm = BatchUpdate(10 * BLOCK, types, hidden, device, recompute)
    warm.load()
    warm()
    used = Peak(device)
    update.load()
    update()
    update()
    return used.bytes(), update.own_bytes()

"""`tpdist reproduce long-memory`: the adding problem, by every arm of its configuration.

A method that keeps states from visit to visit is given one window, its training set, over and over (batch mode); any
other gets new sequences at every update. A sequence is a window, `batching.blocks` blocks; `batching.streams` is the
sequences of an update, an epoch is EPOCH updates.
All else is the package's own: `tprop.visit` on windows of numbers in place of token ids.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpdist.config import Experiment
from tpdist.experiments.adding import MARKED, SOLVED, TRIVIAL, Adder, in_blocks, sequences
from tpdist.experiments.points import expand
from tpdist.experiments.results import versions
from tpdist.tprop import Alone, Boundaries, Theta, Window, make_window, plan_epoch, visit
from tpdist.training.files import write_atomic, write_json
from tpdist.training.progress import Reporter

EPOCH = 25
TESTED = 1000
TEST_SEED = 1_000_003  # its sequences are no seed's training sequences


def long_memory(
    file: Path, overrides: Sequence[str], arms: Sequence[str], home: Path, reporter: Reporter, limit_s: float | None
) -> dict[str, Any]:
    """Run every arm with every seed, or what is missing of it in `home`/points, and return what is kept."""
    threads, began = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for point in sorted(expand(file, overrides, arms), key=lambda point: point.seed):
            path = home / "points" / f"{point.name}.json"
            if not path.is_file():
                if limit_s is not None and time.monotonic() - began > limit_s:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                reached = {"seed": point.seed, **learn(point.config)}
                write_atomic(path, lambda file, reached=reached: write_json(file, reached))
                end = "solved" if reached["solved"] else "not solved"
                reporter.say(
                    f"{point.arm}, seed {point.seed}: {end}, error {reached['error']:.4f} after {reached['updates']} "
                    f"updates, {reached['seconds']:.0f} s"
                )
            found.setdefault(point.arm, []).append(json.loads(path.read_text(encoding="utf-8")))
    finally:
        torch.set_num_threads(threads)
    return {"command": "tpdist reproduce long-memory", "versions": versions(), "trivial": TRIVIAL, "adding": found}


def learn(config: Experiment) -> dict[str, Any]:
    """Train until the error on new sequences is SOLVED, for at most `run.epochs` epochs of EPOCH updates.

    seconds: of processor time in the updates, which other programs on the machine do not change much; wall: what a
    clock says.
    """
    torch.manual_seed(config.run.seed)
    blocks, streams = config.batching.blocks, config.batching.streams
    steps = config.objective.block * blocks
    model = Adder(config.model.hidden, steps)
    theta = Theta(model, config.optimizer)
    tested = sequences(TESTED, steps, torch.Generator().manual_seed(TEST_SEED))
    plan = plan_epoch(config, 1, blocks)
    source = windows(config, torch.Generator().manual_seed(config.run.seed))
    window, boundaries = next(source), Boundaries.for_plan(plan, streams, blocks, model)
    seconds, wall, reached, updates = 0.0, 0.0, error(model, *tested), 0
    for epoch in range(1, config.run.epochs + 1):
        plan = plan_epoch(config, epoch, blocks)
        for _ in range(EPOCH):
            began, clock = time.process_time(), time.perf_counter()
            visit(model, plan, theta, window, 0, boundaries, model.zero_state(streams), Alone())
            seconds, wall = seconds + time.process_time() - began, wall + time.perf_counter() - clock
            updates += 1
            window = window if plan.stores_states else next(source)
        reached = error(model, *tested)
        if reached <= SOLVED:
            break
    spent = {"seconds": round(seconds, 1), "wall": round(wall, 1)}
    return {"lag": steps - MARKED, "solved": reached <= SOLVED, "error": reached, "updates": updates, **spent}


def windows(config: Experiment, generator: torch.Generator) -> Iterator[Window]:
    """New sequences without end, `batching.streams` at a time, each from its first step to its last."""
    block, streams = config.objective.block, config.batching.streams
    while True:
        inputs, labels = in_blocks(*sequences(streams, block * config.batching.blocks, generator), block)
        yield make_window(inputs, labels, torch.float32, tokens=streams, opens=True)


def error(model: Adder, inputs: Tensor, sums: Tensor) -> float:
    """Mean squared error of the answers: inputs [steps, n], sums [n]."""
    with torch.no_grad():
        h, _ = model.unroll(inputs, model.zero_state(len(sums)))
        return float(model.loss(h[-1], sums)) / len(sums)

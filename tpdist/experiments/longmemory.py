"""`tpdist reproduce long-memory`: the adding and the copying problem, by every arm of its configuration.

An arm whose name begins with `copy` is about the copying problem, any other about the adding problem.
A method that keeps states from visit to visit is given one window, its training set, over and over (batch mode); any
other gets new sequences at every update. A sequence is a window, `batching.blocks` blocks; `batching.streams` is the
sequences of an update, an epoch is EPOCH updates.
All else is the package's own: `tprop.visit` on windows that no store holds.
"""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpdist.config import Experiment, unread_by_all, with_place
from tpdist.errors import ConfigError, key_of, of_variable, place_of
from tpdist.experiments.adding import ADDING
from tpdist.experiments.copying import COPYING
from tpdist.experiments.memory import Problem
from tpdist.experiments.points import Point, expand
from tpdist.experiments.results import Kept, joined_commands, versions, versions_of
from tpdist.models import LanguageModel
from tpdist.tprop import Alone, Boundaries, Theta, Window, make_window, plan_epoch, visit
from tpdist.training.files import read_json, write_json
from tpdist.training.progress import Reporter

EPOCH = 25
TESTED = 1000
PROBLEMS = {"adding": ADDING, "copying": COPYING}
TEST_SEED = 1_000_003  # its sequences are no seed's training sequences
# of a configuration what is read here; a part stands for all that is below it
READ = (
    "preset", "sweep", "model.hidden", "objective", "method",
    "batching.streams", "batching.blocks", "batching.order", "batching.chunk_tokens", "batching.recompute",
    "optimizer.name", "optimizer.lr", "optimizer.clip", "optimizer.options", "run.seed", "run.epochs", "run.device",
)  # fmt: skip


def long_memory(
    file: Path, overrides: Sequence[str], arms: Sequence[str], home: Path, reporter: Reporter, limit_s: float | None
) -> dict[str, Any]:
    """Run every arm with every seed, or what is missing of it in `home`/points, and return what is kept."""
    points = _points(file, overrides, arms)
    for line in _unread(points, overrides):
        reporter.say(line)
    threads, began = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in PROBLEMS}
    try:
        for point in points:
            name = problem_of(point.arm)
            path = home / "points" / f"{point.name}.json"
            if not path.is_file():
                if limit_s is not None and time.monotonic() - began > limit_s:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                reached = {"seed": point.seed, **learn(PROBLEMS[name], point.config)}
                write_json(path, reached)
                end = "solved" if reached["solved"] else "not solved"
                reporter.say(
                    f"{point.arm}, seed {point.seed}: {end}, error {reached['error']:.4f} after {reached['updates']} "
                    f"updates, {reached['seconds']:.0f} s"
                )
            found[name].setdefault(point.arm, []).append(read_json(path))
    finally:
        torch.set_num_threads(threads)
    trivial = {name: problem.trivial for name, problem in PROBLEMS.items()}
    return {"versions": versions(), "trivial": trivial, **found}


def dry_run(file: Path, overrides: Sequence[str], arms: Sequence[str], home: Path) -> list[str]:
    """The points that `long_memory` would run, a line each."""
    points = _points(file, overrides, arms)
    waiting = [point for point in points if not (home / "points" / f"{point.name}.json").is_file()]
    lines = [*_unread(points, overrides), *(f"{point.arm}  seed {point.seed}  waiting" for point in waiting)]
    return [*lines, f"{home}: {len(waiting)} points to run, {len(points) - len(waiting)} done"]


def _points(file: Path, overrides: Sequence[str], arms: Sequence[str]) -> list[Point]:
    """Seed by seed. Raises ConfigError for a device that is none."""
    points = sorted(expand(file, overrides, arms), key=lambda point: point.seed)
    for config in (point.config for point in points):
        if config.run.device == "cuda":
            error = ConfigError("long-memory trains on a CPU, one thread; must be cpu, got 'cuda'", "run.device")
            raise with_place(error, config)
    return points


def _unread(points: Sequence[Point], overrides: Sequence[str]) -> Iterator[str]:
    """A line for each override that no arm reads, and for what the methods of all of them do not read."""
    for text in overrides:
        key, place = key_of(text), place_of(text)
        read = any(f"{key}.".startswith(f"{part}.") or part.startswith(f"{key}.") for part in READ)
        if not read and not of_variable(text):
            yield f"note: {place}: {key} changes nothing in long-memory"
    yield from unread_by_all([point.config for point in points])


def problem_of(arm: str) -> str:
    """The name of the problem that an arm is about."""
    return "copying" if arm.startswith("copy") else "adding"


def with_others(kept: Kept, before: Kept) -> Kept:
    """`kept`, and the arms that were kept before and are not in it."""
    joined = {name: {**before.get(name, {}), **kept[name]} for name in PROBLEMS}
    command, made_by = kept["command"], kept["versions"]
    if any(joined[name] != kept[name] for name in PROBLEMS):
        command = joined_commands(before["command"], command)
        made_by = versions_of([before["versions"], made_by])
    return {**kept, "command": command, "versions": made_by, **joined}


def learn(problem: Problem, config: Experiment) -> dict[str, Any]:
    """Train until the error on new sequences counts as solved, or is no number any more.

    It ends after `run.epochs` epochs of EPOCH updates at the latest. seconds: of processor time in the updates, which
    other programs on the machine do not change much; wall: what a clock says.
    """
    torch.manual_seed(config.run.seed)
    blocks, streams = config.batching.blocks, config.batching.streams
    steps = config.objective.block * blocks
    model = problem.model(config.model.hidden, steps)
    theta = Theta(model, config.optimizer)
    tested = problem.sequences(TESTED, steps, torch.Generator().manual_seed(TEST_SEED))
    plan = plan_epoch(config, 1, blocks)
    source = windows(problem, config, torch.Generator().manual_seed(config.run.seed))
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
        if reached <= problem.solved or not math.isfinite(reached):
            break
    spent = {"seconds": round(seconds, 1), "wall": round(wall, 1)}
    solved = reached <= problem.solved
    return {"lag": steps - problem.within, "solved": solved, "error": reached, "updates": updates, **spent}


def windows(problem: Problem, config: Experiment, generator: torch.Generator) -> Iterator[Window]:
    """New sequences without end, `batching.streams` at a time, each from its first step to its last."""
    block, streams = config.objective.block, config.batching.streams
    while True:
        inputs, answers = problem.sequences(streams, block * config.batching.blocks, generator)
        cut = problem.in_blocks(inputs, answers, block)
        yield make_window(*cut, torch.float32, tokens=answers.numel(), opens=True)


def error(model: LanguageModel, inputs: Tensor, answers: Tensor) -> float:
    """Mean loss of an answer: inputs [steps, n], answers [m, n]."""
    with torch.no_grad():
        h, _ = model.unroll(inputs, model.zero_state(inputs.shape[1]))
        return float(model.loss(h[-len(answers) :], answers)) / answers.numel()

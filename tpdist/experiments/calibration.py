"""What `tpdist plan` measures: this machine's updates and messages; and its forecast against real runs."""

import statistics
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tpdist.config import Experiment
from tpdist.experiments import costs, failures
from tpdist.experiments.bench.scaling import batch_config, make_store, run_bare
from tpdist.experiments.costs import Device, Link, Share
from tpdist.experiments.measure import Say, in_turns, machine, medians
from tpdist.experiments.plain import random_tokens
from tpdist.launch.placement import own_cores
from tpdist.models import build_model
from tpdist.testing import run_ranks
from tpdist.tprop import Alone, Boundaries, Plan, Theta, make_window, plan_epoch, visit
from tpdist.training.heap import keep_freed_memory

SMALL, LARGE, CHUNK = 2_000, 8_000, 2_000  # tokens of the two windows that compute is calibrated by, and of a chunk
ROUNDS = 7
FEW = 4  # costate sweeps of which each costs the same: in batch mode a visit makes as many as a stream has blocks
VALIDATED = (1, 2, 4, 8)
VALIDATION_TOKENS = 16_000  # a worker
VALIDATION_TYPES = 10_000
VALIDATION_UPDATES = 8  # the first makes what the others find: pages, kernels


def calibrate(config: Experiment, visit_plan: Plan, types: int, share: Share) -> Device:
    """This machine's CPU, GPU or not: two window sizes, a straight line through the medians of their updates' times.

    Of more than a few costate sweeps only a few are made, and another straight line says what all of them take.
    """
    if visit_plan.sweeps <= 2 * FEW:
        return _through_two_sizes(config, visit_plan, types, share)
    few, more = (
        _through_two_sizes(config, replace(visit_plan, sweeps=sweeps), types, share) for sweeps in (FEW, 2 * FEW)
    )
    on = (visit_plan.sweeps - 2 * FEW) / FEW
    fixed, per_token = (
        max(0.0, most + on * (most - least))
        for least, most in ((few.fixed_s, more.fixed_s), (few.per_token_s, more.per_token_s))
    )
    return replace(more, fixed_s=fixed, per_token_s=per_token)


def _through_two_sizes(config: Experiment, visit_plan: Plan, types: int, share: Share) -> Device:
    keep_freed_memory()  # as a worker does
    B = config.objective.block
    model = build_model(config.model, config.run, types)
    theta = Theta(model, config.optimizer)
    if share.tokens > config.batching.chunk_tokens:  # passes as there, chunk by chunk
        visit_plan = replace(visit_plan, chunk_blocks=max(1, CHUNK // B))
    streams = max(1, min(share.streams, SMALL // B))
    sizes = [max(1, size // B // streams) for size in (SMALL, LARGE)]
    reach = visit_plan.reach
    updates = {}
    for name, blocks in zip(("small", "large"), sizes, strict=True):
        inputs, labels = random_tokens(types, 2, B, streams, reach + blocks)
        window = make_window(
            inputs[:, :, reach:], labels[:, :, reach:], model.bias.dtype, tokens=B * streams * blocks, opens=False,
            earlier=inputs[:, :, :reach],
        )  # fmt: skip
        boundaries = Boundaries.for_plan(visit_plan, streams, reach + blocks, model)
        where = (window, reach, boundaries, model.zero_state(streams), Alone())
        updates[name] = partial(visit, model, visit_plan, theta, *where)
    small, large = medians(in_turns(updates, ROUNDS)).values()
    per_token = max(large - small, 0.0) / ((sizes[1] - sizes[0]) * streams * B)
    return Device("this machine's CPU", max(0.0, small - per_token * sizes[0] * streams * B), per_token, None)


def validate(say: Say, workers: tuple[int, ...] = VALIDATED, tokens: int = VALIDATION_TOKENS) -> dict[str, Any]:
    """Forecast against bare processes of this machine, which share its caches, and its cores where they are more."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        for count in workers:
            config = batch_config(count, count * tokens, home, VALIDATION_UPDATES)
            make_store(config)
            share = costs.share_of(config, count * tokens)
            visit_plan, shape = plan_epoch(config, 1, share.window), costs.shape_of(config, VALIDATION_TYPES)
            device, link = _calibrate_together(count, config, visit_plan, share), _measure_link(count)
            parts = costs.seconds(config, visit_plan, shape, share, device, link)
            forecast = failures.seconds(parts, count, failures.SPREAD)
            result = run_bare(config, home / f"run-{count}")
            measured = result.seconds / result.steps
            sent = costs.neighbour_bytes(config, visit_plan, shape) * result.steps
            rows.append({"workers": count, "forecast_s": forecast, "measured_s": measured, "link": asdict(link)})
            say(
                f"{count} workers on {own_cores()} cores: forecast {forecast:.3f} s an update, measured "
                f"{measured:.3f}: {forecast / measured - 1:+.1%}; "
                f"bytes between neighbours {sent:,} and {result.boundary_bytes:,}"
            )
    errors = {f"error_{row['workers']}": row["forecast_s"] / row["measured_s"] - 1 for row in rows}
    return {"machine": machine(), "rows": rows, "ratios": errors}


def _calibrate_together(workers: int, config: Experiment, visit_plan: Plan, share: Share) -> Device:
    """As the workers will run, all at once on the same cores, with nothing to say to each other; their mean."""
    found = run_ranks(_calibrate_one, workers, config, visit_plan, share)
    fixed, per_token = (
        statistics.mean(getattr(device, part) for device in found) for part in ("fixed_s", "per_token_s")
    )
    return replace(found[0], fixed_s=fixed, per_token_s=per_token)


def _calibrate_one(config: Experiment, visit_plan: Plan, share: Share) -> Device:
    torch.set_num_threads(1)
    dist.barrier()
    return calibrate(config, visit_plan, VALIDATION_TYPES, share)


def _measure_link(workers: int) -> Link:
    """α and β of this machine's Gloo, from a small and a large all-reduce, as `ring` understands them."""
    if workers == 1:
        return Link(0.0, 1e12)
    small, large, size = run_ranks(_all_reduces, workers)[0]
    latency = small / (2 * (workers - 1))
    return Link(latency, 2 * (workers - 1) / workers * size / max(large - small, 1e-9))


def _all_reduces() -> tuple[float, float, int]:
    found = []
    for numbers in (1, 2**20):
        values = torch.ones(numbers)
        times = []
        for _ in range(8):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(values)
            times.append(time.perf_counter() - began)
        found.append(statistics.median(times))
    return found[0], found[1], 4 * 2**20

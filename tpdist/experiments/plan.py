"""`tpdist plan`: what a configuration would cost on many workers, and what the forecast assumes.

Compute is measured on this machine (`calibration.py`), or follows from a named GPU's peak and the share of it that is
reached; the rest is `costs.py` and `failures.py`.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

from tpdist.config import Experiment
from tpdist.data import Store, default_store
from tpdist.errors import TpdistError
from tpdist.experiments import costs, failures
from tpdist.experiments.calibration import calibrate
from tpdist.experiments.costs import Device, Link, Shape, Share
from tpdist.experiments.measure import Say, machine
from tpdist.tprop import Plan, plan_epoch
from tpdist.training.batches import crew_sizes


@dataclass(frozen=True)
class Gpu:
    """Data sheet: bytes of memory, bytes a second, operations a second in float32, TF32, bfloat16 (dense)."""

    memory: float
    bandwidth: float
    float32: float
    tf32: float
    bfloat16: float


GPUS = {
    "a100": Gpu(80e9, 2.0e12, 19.5e12, 156e12, 312e12),
    "h100": Gpu(80e9, 3.35e12, 67e12, 494e12, 989e12),
    "h200": Gpu(141e9, 4.8e12, 67e12, 494e12, 989e12),
}
GPU_FIXED_S = 1e-3  # launches of an update; an assumption
SAVE_BYTES_PER_S = 1e9  # to the file system, each worker its own file; an assumption
RECOVER_S = 7.0  # from a worker's death to training again
TRILLION = 1e12
MOST_TYPES = 2**31  # whose ids a store holds


@dataclass(frozen=True)
class Assumed:
    """What a person may know better: share of a GPU's peak, a worker's hours between failures, spread of step times."""

    share: float = 0.4
    mtbf_hours: float = 50_000.0
    spread: float = failures.SPREAD
    price: float | None = None


def plan(
    config: Experiment, tokens: int, types: int, gpu: str | None, link: Link, assumed: Assumed, say: Say
) -> dict[str, Any]:
    """Print the forecast of `config` on `cluster.workers` workers; what `--json` writes."""
    most = crew_sizes(config, tokens)[-1]  # as many as fit, where there may be more or fewer
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"workers": most})})
    share = costs.share_of(config, tokens)
    visit_plan = plan_epoch(config, 1, share.window)
    shape = costs.shape_of(config, types)
    once = costs.rolled_once(visit_plan, share.tokens, config.batching.chunk_tokens, share.updates == 1)
    if gpu is not None:
        device = on_gpu(config, visit_plan, shape, once, gpu, assumed)
    else:
        device = calibrate(config, visit_plan, types, share)
    parts = costs.seconds(config, visit_plan, shape, share, device, link)
    used = costs.memory(config, visit_plan, shape, share, device)
    workers = config.cluster.limits[1]
    update = failures.seconds(parts, workers, assumed.spread)
    work = update * share.updates * config.run.epochs
    saved = (used["parameters"] + used["states"]) / SAVE_BYTES_PER_S
    mtbf = 3600 * assumed.mtbf_hours
    interval = max(failures.best_interval(workers, mtbf, saved), update)
    useful = failures.useful_share(workers, mtbf, saved, RECOVER_S, interval)
    alone = device.fixed_s + device.per_token_s * tokens / share.updates
    hours = work / max(useful, 1e-9) / 3600
    tokens_per_s = tokens / share.updates / update
    found = {
        "machine": machine(),
        "config": config.model_dump(mode="json"),
        "assumed": asdict(assumed) | {"device": asdict(device), "link": asdict(link), "recover_s": RECOVER_S},
        "share": asdict(share),
        "memory": used,
        "bytes": {
            "neighbours": costs.neighbour_bytes(config, visit_plan, shape),
            "gradient": visit_plan.theta_steps * costs.gradient_bytes(config, shape) * workers if workers > 1 else 0,
        },
        "seconds": parts | {"slowest": update},
        "efficiency": alone / workers / update,
        "tokens_per_s": tokens_per_s,
        "checkpoint": {"save_s": saved, "interval_s": interval, "useful": useful},
        "hours": hours,
        "worker_hours": hours * workers,
        "price": None if assumed.price is None else hours * workers * assumed.price,
        "limits": costs.limits(config, visit_plan, shape, TRILLION, tokens_per_s),
    }
    _print(found, config, share, device, say)
    return found


def on_gpu(config: Experiment, visit_plan: Plan, shape: Shape, once: bool, name: str, assumed: Assumed) -> Device:
    """A named GPU: its peak in the run's precision times the assumed share; θ read and written once."""
    if name not in GPUS:
        raise TpdistError(f"--gpu: must be one of {', '.join(GPUS)}; got {name!r}")
    card = GPUS[name]
    peak = card.bfloat16 if config.run.dtype == "bfloat16" else card.tf32 if config.run.tf32 else card.float32
    touched = 7 * shape.parameters * costs.NUMBER  # θ, gradient, two moments read; three written
    operations = costs.operations_per_token(shape, visit_plan, once)
    fixed = GPU_FIXED_S + touched / card.bandwidth
    return Device(name, fixed, operations / (peak * assumed.share), card.memory, "gpu")


def corpus_of(config: Experiment, tokens: float | None, types: int | None) -> tuple[int, int]:
    """Training tokens and types: as given, else those of the configuration's store, if it is there."""
    if tokens is None or types is None:
        try:
            manifest = Store.open(default_store(config.data)).manifest
        except TpdistError as error:
            raise TpdistError(f"{error}; prepare it first, or give --tokens and --types") from error
        tokens = manifest.tokens["train"] if tokens is None else tokens
        types = manifest.types if types is None else types
    _need("--tokens", tokens, tokens >= 2, "at least 2")
    _need("--types", types, 2 <= types <= MOST_TYPES, f"at least 2 and at most {MOST_TYPES:,}")
    return int(tokens), types


def assumed_of(share: float, mtbf_hours: float, price: float | None) -> Assumed:
    """What the options say. Raises TpdistError for what no machine is."""
    _need("--share", share, 0 < share <= 1, "above 0 and at most 1")
    _need("--mtbf-hours", mtbf_hours, 0 < mtbf_hours <= 1e9, "above 0 and at most 1e9")
    _need("--price", price or 0.0, (price or 0.0) >= 0, "0 or more")
    return Assumed(share=share, mtbf_hours=mtbf_hours, price=price)


def link_of(text: str, latency_us: float) -> Link:
    """`400Gb` is 400 gigabits a second."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([GM])b", text)
    if match is None or float(match[1]) == 0:
        raise TpdistError(f"--link: must be bits a second such as 400Gb or 100Mb; got {text!r}")
    _need("--latency-us", latency_us, latency_us >= 0, "0 or more")
    return Link(latency_us / 1e6, float(match[1]) * {"G": 1e9, "M": 1e6}[match[2]] / 8)


def _need(option: str, value: float, fits: bool, wanted: str) -> None:
    if not fits:
        raise TpdistError(f"{option}: must be {wanted}; got {value}")


def _print(found: dict[str, Any], config: Experiment, share: Share, device: Device, say: Say) -> None:
    streams, times = config.mesh()
    parts, link, assumed = found["seconds"], found["assumed"]["link"], found["assumed"]
    say(f"{config.method.name}; workers: {streams:,} along stream x {times:,} along time")
    say("assumed:")
    each = f"{device.fixed_s * 1e3:.3g} ms an update, {device.per_token_s * 1e6:.3g} us a token"
    say(f"  compute on {device.name}: {each}")
    if device.kind == "gpu":
        say(f"  that is {assumed['share']:.0%} of its peak (--share), and {GPU_FIXED_S * 1e3:g} ms of launches")
    say(f"  a link of {link['bytes_per_s'] / 1e9:g} GB/s, {link['latency_s'] * 1e6:g} us a message; nothing overlaps")
    say(f"  step times that spread by {assumed['spread']:.0%}; a worker fails every {assumed['mtbf_hours']:,.0f} hours")
    say(f"  saving at {SAVE_BYTES_PER_S / 1e9:g} GB/s a worker, {RECOVER_S:g} s from a failure to training again")
    say(f"busiest worker: {share.streams} streams x {share.blocks} blocks, {share.tokens:,} tokens an update")
    say("memory of a worker, GB:  " + ", ".join(f"{k} {v / 1e9:.3f}" for k, v in found["memory"].items()))
    if device.memory is not None and found["memory"]["all"] > device.memory:
        say(
            f"  more than the {device.memory / 1e9:g} GB that it has: lower batching.chunk_tokens, or take more workers"
        )
    sent = found["bytes"]
    say(f"bytes an update: {sent['neighbours']:,} between neighbours, {sent['gradient']:,} of gradients")
    say("seconds an update:  " + ", ".join(f"{k} {v:.3g}" for k, v in parts.items()))
    say(f"efficiency {found['efficiency']:.1%}; {found['tokens_per_s']:,.0f} tokens/s")
    check = found["checkpoint"]
    every = f"a checkpoint of {check['save_s']:.3g} s every {check['interval_s']:,.0f} s"
    say(f"{every}: {check['useful']:.1%} of the time is useful")
    say(
        f"{config.run.epochs} epochs: {found['hours']:.3g} hours, {found['worker_hours']:.4g} worker-hours"
        + (f", {found['price']:,.2f} at the price given" if found["price"] is not None else "")
    )
    most = found["limits"]
    say(
        f"at 10^12 tokens: {most['ids_bytes'] / 1e12:g} TB of ids on disk, {most['states_bytes'] / 1e12:.4g} TB of "
        f"states in all, {most['pass_s'] / 3600:,.4g} hours a pass at these tokens/s"
    )

"""What an update costs on many workers: operations, memory, bytes, seconds. A model, in pure functions.

    seconds = compute + what crosses between neighbours + the sum of θ's gradient
    compute = fixed + per_token x the most tokens that a worker has
    ring    = 2 (P - 1) α + 2 (P - 1)/P bytes/β        tree = 2 ⌈log2 P⌉ α + 2 bytes/β

α is a message's latency and β a link's bytes a second (Thakur et al. 2005, Section 4; Sanders et al. 2009 for the tree
that uses the link both ways). Nothing overlaps, so the model errs to the slow side where a run hides its messages.
Shape letters: `models/cells.py`; P workers.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from tpdist.config import BUILT_IN_CELLS, Experiment
from tpdist.data.writer import id_dtype
from tpdist.errors import ConfigError
from tpdist.models import build_model
from tpdist.models.head import rows_at_once
from tpdist.tprop import Plan
from tpdist.training.batches import layout_of

THETA_STATES = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "adam": 2, "adamw": 2, "nadam": 2, "radam": 2, "adamax": 2}
SLOWEST_STATES = 2  # of optimisers not named here
NUMBER = 4  # bytes of a float32
TOKEN = 2 * 8  # bytes of an input's and a label's id
# tensors over all boundaries of a visit that live at once, beside what is kept, where it is not in place
TEMPORARIES = {"bptt": 4, "costate": 5, "pm": 10, "admm": 10, "alm": 12}
KEPT = 8  # numbers of width H that a step's graph keeps, and as many in the backward pass


@dataclass(frozen=True)
class Shape:
    """The numbers of a model: E, H, layers, gates, d, V, and all its parameters."""

    inputs: int
    hidden: int
    layers: int
    gates: float  # matrices of H columns in a layer, for the input and as many for the state
    state: int
    types: int
    parameters: int


@dataclass(frozen=True)
class Device:
    """Seconds an update whatever its size, seconds a token, bytes of memory (None: not known)."""

    name: str
    fixed_s: float
    per_token_s: float
    memory: float | None
    kind: str = "cpu"


@dataclass(frozen=True)
class Link:
    """α in seconds, β in bytes a second."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Share:
    """What the busiest worker has of an update, and how many updates an epoch takes."""

    streams: int
    blocks: int
    tokens: int
    stored_blocks: int  # of all windows: whose H and U lie here
    updates: int
    window: int  # K, of a whole window: what all workers along time have of it


def shape_of(config: Experiment, types: int) -> Shape:
    """Raises ConfigError for what is not known: an own cell's matrices, an own visit, `als`, which solves equations."""
    model = config.model
    if config.method.visit is not None:
        raise ConfigError("plan knows the built-in visits alone; write null for the forecast of one", "method.visit")
    if config.method.name == "als":
        raise ConfigError("plan does not know what als costs; write another method", "method.name")
    if ":" in model.cell:
        known = ", ".join(BUILT_IN_CELLS)
        raise ConfigError(f"plan knows the cells {known}; for {model.cell!r} take the nearest", "model.cell")
    with torch.device("meta"):  # without memory
        built = build_model(model, config.run, types)
    E, H = model.embedding or model.hidden, model.hidden
    gates = sum(p.numel() for p in built.layers[0].parameters() if p.dim() == 2) / (H * (E + H))
    parameters = sum(p.numel() for p in built.parameters())
    return Shape(E, H, model.layers, gates, built.state_size, types, parameters)


def own_windows(config: Experiment) -> bool:
    """Whether every worker along time draws windows of its own span, so that an update sends neighbours nothing."""
    return config.batching.order == "shuffled" and config.mesh()[1] > 1


def share_of(config: Experiment, tokens: int) -> Share:
    """The busiest worker's part; mesh (stream, time) of the configuration. Raises ConfigError where a run would."""
    streams, times = config.mesh()
    B, S = config.objective.block, config.batching.streams
    blocks = layout_of(config, tokens, times).blocks
    window = blocks if config.batching.mode == "batch" else config.batching.blocks
    own_streams, own_blocks = math.ceil(S / streams), math.ceil(window / times)
    updates = math.ceil(blocks / window)
    if own_windows(config):
        span = math.ceil(blocks / times)
        own_blocks, updates = min(window, span), math.ceil(span / window)
    return Share(own_streams, own_blocks, own_streams * own_blocks * B, updates * own_blocks, updates, window)


def rolled_once(plan: Plan, tokens: int, chunk_tokens: int, whole: bool) -> bool:
    """Whether one roll-out serves all passes over a worker's `tokens` until θ moves (`tprop/rollout.py`).

    whole: whether the window is all that the worker owns, so that it may be visited in place.
    """
    held = plan.moves_targets and plan.held and plan.h_steps > 0
    if tokens > chunk_tokens:
        return held and plan.in_place and whole
    return held or plan.sweeps > 0


def operations_per_token(shape: Shape, plan: Plan, once: bool) -> float:
    """Floating-point operations in the matrix products of an update, for each of its tokens.

    once: as `rolled_once` has it. Work that `batching.recompute` repeats is not counted.
    """
    head = 2 * shape.types * shape.hidden  # one product
    into = shape.gates * shape.hidden * (shape.inputs + (shape.layers - 1) * shape.hidden)
    within = shape.gates * shape.hidden * shape.hidden * shape.layers
    above = shape.gates * shape.hidden * (shape.layers - 1) * shape.hidden  # gradients between layers
    forward, back = 2 * (into + within), 2 * (within + above)  # back: to the states alone
    full = back + 2 * (into - above) + 2 * (into + within)  # … to the inputs and the weights too
    theta = 3 * head + forward + full
    # windows in random order reach back: stored states are brought through the blocks before the window to its edge
    reach = plan.reach / plan.blocks
    if plan.first == "persistent":  # by the sweeps themselves, each over one block less than the last
        rolled = plan.relaxation * (1 - 1 / plan.blocks) + reach * (plan.relaxation + 1) / 2
    else:
        rolled = {"forward": 1 - 1 / plan.blocks, "one-block": 1}.get(plan.first, 0) + reach
    total = rolled * forward
    again = plan.sweeps - (not plan.stores_costates) if plan.sweeps else 0  # sweeps with a costate to pull back
    if once:
        passes = plan.h_steps + (1 + again if plan.sweeps else 0)
        total += theta + passes * back
    else:
        total += plan.h_steps * (2 * head + forward + back) + theta
        total += (2 * head + forward + back + again * (forward + back)) if plan.sweeps else 0
    return total + (plan.theta_steps - 1) * theta + (forward if plan.dual else 0)


def states_sent(plan: Plan) -> tuple[int, int]:
    """Free states to the left and to the right, per stream, edge and update: ARCHITECTURE.md, "Messages"."""
    if plan.als:
        return 3, 2
    takes = plan.h_steps + (plan.theta_steps if plan.joint else 1)
    left = takes * (2 if plan.keep_duals or plan.dual else 1)
    left += plan.sweeps + (plan.keep_costates and plan.sweeps > 0)
    right = plan.h_steps + (plan.theta_steps if plan.joint else 0) + (plan.dual is not None)
    return left, right + {"one-block": 1, "persistent": plan.relaxation}.get(plan.first, 0)


def neighbour_bytes(config: Experiment, plan: Plan, shape: Shape) -> int:
    """All that crosses between neighbours in an update, over all edges and streams; what `boundary_bytes` counts."""
    if own_windows(config):
        return 0
    edges = config.mesh()[1] - 1
    return sum(states_sent(plan)) * edges * config.batching.streams * shape.state * NUMBER


def gradient_bytes(config: Experiment, shape: Shape) -> int:
    """What a worker adds to a sum of θ's gradient, as it is sent; every θ-step has one."""
    return shape.parameters * (2 if config.cluster.gradient_dtype == "bfloat16" else NUMBER)


def ring(workers: int, size: float, link: Link) -> float:
    """Seconds of an all-reduce of `size` bytes around a ring."""
    return 2 * (workers - 1) * link.latency_s + 2 * (workers - 1) / workers * size / link.bytes_per_s


def tree(workers: int, size: float, link: Link) -> float:
    """… up and down a binary tree."""
    if workers == 1:
        return 0.0
    return 2 * math.ceil(math.log2(workers)) * link.latency_s + 2 * size / link.bytes_per_s


def seconds(config: Experiment, plan: Plan, shape: Shape, share: Share, device: Device, link: Link) -> dict[str, float]:
    """The parts of an update's time; `reduction` is the faster of `ring` and `tree`."""
    workers = config.cluster.limits[1]
    times = 1 if own_windows(config) else config.mesh()[1]
    size, one = gradient_bytes(config, shape), share.streams * shape.state * NUMBER
    sent = sum(states_sent(plan)) if times > 1 else 0
    found = {
        "compute": device.fixed_s + device.per_token_s * share.tokens,
        "neighbours": sent * (link.latency_s + one / link.bytes_per_s),
        "ring": plan.theta_steps * ring(workers, size, link),
        "tree": plan.theta_steps * tree(workers, size, link),
    }
    found["reduction"] = min(found["ring"], found["tree"])
    if plan.first == "forward":  # worker after worker, each rolls its blocks out one step at a time: not modelled
        found["neighbours"] += (times - 1) * (link.latency_s + one / link.bytes_per_s)
    return found | {"update": found["compute"] + found["neighbours"] + found["reduction"]}


def memory(config: Experiment, plan: Plan, shape: Shape, share: Share, device: Device) -> dict[str, float]:
    """Bytes on a worker: parameters with gradient and optimiser, stored states, the window's ids, what is temporary."""
    slots = THETA_STATES.get(config.optimizer.name, SLOWEST_STATES)
    state = share.streams * shape.state * NUMBER
    chunk = min(share.tokens, config.batching.chunk_tokens)
    rows = min(chunk, rows_at_once("cpu" if device.kind == "cpu" else "cuda", shape.types))
    # an optimiser's state while the window is visited, and what its step makes: with Adam on H 3 to 6 tensors measured
    temporaries = TEMPORARIES[config.method.name] + 2 * _h_slots(plan)
    if plan.in_place and share.updates == 1 and share.tokens > chunk:
        temporaries = 0 if plan.held and (plan.recompute or plan.dual is None) else 1
    found: dict[str, float] = {
        "parameters": shape.parameters * NUMBER * (2 + slots),
        "states": _kept_states(plan) * share.stored_blocks * state,
        "ids": share.tokens * TOKEN,
        "visit": temporaries * share.blocks * state,
        "chunk": NUMBER * (2 * KEPT * chunk * shape.hidden * shape.layers + rows * shape.types)
        + shape.types * shape.hidden * NUMBER,
    }
    return found | {"all": sum(found.values())}


def limits(config: Experiment, plan: Plan, shape: Shape, tokens: float, tokens_per_s: float) -> dict[str, Any]:
    """A text of `tokens` tokens: bytes of H, U and the optimiser's state over all workers, seconds of a pass."""
    states = tokens / config.objective.block * shape.state * NUMBER
    return {
        "ids_bytes": tokens * id_dtype(shape.types).itemsize,
        "states_bytes": _kept_states(plan) * states,
        "pass_s": tokens / tokens_per_s,
    }


def _kept_states(plan: Plan) -> int:
    """Tensors over all boundaries that live from visit to visit: those of `Boundaries.for_plan`, H's optimiser."""
    optimizer = _h_slots(plan) if plan.h.keep else 0
    return plan.stores_states + plan.keep_duals + plan.stores_costates + optimizer


def _h_slots(plan: Plan) -> int:
    """Tensors as large as H that its optimiser needs."""
    return THETA_STATES.get(plan.h.name, SLOWEST_STATES) if plan.moves_targets else 0

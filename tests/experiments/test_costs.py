"""What an update costs, against counts of real updates and against numbers worked out by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tpdist.config import Experiment
from tpdist.data import ArrayTokens
from tpdist.errors import ConfigError
from tpdist.experiments import costs
from tpdist.experiments.bench import batch
from tpdist.experiments.costs import Device, Link
from tpdist.experiments.plain import random_tokens
from tpdist.models import build_model
from tpdist.models.products import by_onednn
from tpdist.parallel import Place
from tpdist.tprop import Alone, Boundaries, Theta, make_window, plan_epoch, visit
from tpdist.training.batches import Batches

TYPES, HIDDEN, B, S, K = 300, 12, 4, 3, 20
METHODS: dict[str, dict[str, Any]] = {
    "bptt": {"name": "bptt"},
    "pm": {"name": "pm", "h_steps": 2, "starts": "tied", "h_optimizer": {"lr": 0.1}},
    "admm": {"name": "admm", "h_steps": 2},
    "admm, tied, one-block": {"name": "admm", "h_steps": 1, "starts": "tied", "first": "one-block"},
    "alm": {"name": "alm", "starts": "tied", "theta_steps": 2, "h_optimizer": {"name": "adagrad", "lr": 0.1}},
    "costate": {"name": "costate", "sweeps": 3},
    "costate, kept": {"name": "costate", "sweeps": 2, "keep_costates": True, "first": "persistent", "relaxation": 2},
}


def experiment(method: dict[str, Any], **parts: Any) -> Experiment:
    base = {
        "model": {"hidden": HIDDEN},
        "objective": {"block": B},
        "method": method,
        "batching": {"streams": S, "blocks": K},
    }
    return Experiment.model_validate({**base, **parts})


class CountProducts(TorchDispatchMode):
    """Floating-point operations of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left, right = args[:2] if name == "aten::mm" else args[1:3]
            self.operations += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        elif name == "mkldnn::_linear_pointwise":
            self.operations += 2 * args[0].shape[0] * args[0].shape[1] * args[1].shape[0]
        return func(*args, **(kwargs or {}))


def test_operations_of_a_batch_update_are_those_counted() -> None:
    update = batch.BatchUpdate(20_000, 400, 16, "cpu")
    update.load()
    with CountProducts() as count:
        update()
    # in place the first ĥ is made once more from θ as it was: an update could do without
    again = 20_000 * 2 * 3 * 16 * (16 + 16)
    if by_onednn(torch.ones(1)):  # the bias's gradient is a column of the weight's product, to spare a pass
        again += 20_000 * 2 * 400
    assert count.operations == pytest.approx(update.operations() + again, rel=0.001)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("chunk_tokens", [16_384, 40])
@pytest.mark.parametrize("method", METHODS)
def test_operations_of_an_update_are_those_counted(method: str, chunk_tokens: int, layers: int) -> None:
    batching = {"streams": S, "blocks": K, "chunk_tokens": chunk_tokens}
    config = experiment(METHODS[method], batching=batching, model={"hidden": HIDDEN, "layers": layers})
    plan, model = plan_epoch(config, 1, K), build_model(config.model, config.run, TYPES)
    inputs, labels = random_tokens(TYPES, 2, B, S, K)
    window = make_window(inputs, labels, torch.float32, tokens=B * S * K, opens=False)
    boundaries = Boundaries.for_plan(plan, S, K, model)
    with CountProducts() as count:
        visit(model, plan, Theta(model, config.optimizer), window, 0, boundaries, model.zero_state(S), Alone())
    once = costs.rolled_once(plan, B * S * K, chunk_tokens, whole=True)
    wanted = costs.operations_per_token(costs.shape_of(config, TYPES), plan, once)
    assert count.operations == pytest.approx(wanted * B * S * K, rel=0.03)


@pytest.mark.parametrize("first", ["persistent", "forward"])
@pytest.mark.parametrize("relaxation", [1, 3])
@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("order", ["sequential", "shuffled", "shuffled, costates at the edge"])
def test_operations_of_a_short_window_are_those_counted(order: str, blocks: int, relaxation: int, first: str) -> None:
    """In random order its states are rolled out from blocks before it; in order those inside it alone are."""
    order, _, edge = order.partition(", ")
    reach = relaxation if order == "shuffled" else 0
    method = {"name": "costate", "first": first, "relaxation": relaxation, "edge_costate": "kept" if edge else "zero"}
    config = experiment(method, batching={"streams": S, "blocks": blocks, "order": order})
    plan, model = plan_epoch(config, 1, blocks), build_model(config.model, config.run, TYPES)
    inputs, labels = random_tokens(TYPES, 2, B, S, reach + blocks)
    window = make_window(
        inputs[:, :, reach:], labels[:, :, reach:], torch.float32, tokens=B * S * blocks, opens=False,
        earlier=inputs[:, :, :reach],
    )  # fmt: skip
    boundaries = Boundaries.for_plan(plan, S, reach + blocks, model)
    with CountProducts() as count:
        visit(model, plan, Theta(model, config.optimizer), window, reach, boundaries, model.zero_state(S), Alone())
    once = costs.rolled_once(plan, B * S * blocks, config.batching.chunk_tokens, whole=False)
    wanted = costs.operations_per_token(costs.shape_of(config, TYPES), plan, once)
    assert count.operations == pytest.approx(wanted * B * S * blocks, rel=0.03)


@pytest.mark.parametrize("mesh", [(1, 1), (1, 3), (2, 2), (1, 5)])
@pytest.mark.parametrize("order", ["sequential", "shuffled"])
@pytest.mark.parametrize("blocks", [6, 40, None])  # of a window: 40 are more than a span of 3 workers has
def test_a_workers_share_is_that_of_its_batches(mesh: tuple[int, int], order: str, blocks: int | None) -> None:
    tokens = 1 + 4 * B * 60  # no stream is short
    method = {"name": "costate", "first": "persistent", "relaxation": 2}
    config = experiment(
        method,
        batching={"streams": 4, "order": order, **({"blocks": blocks} if blocks else {"mode": "batch"})},
        cluster={"workers": mesh[0] * mesh[1], "mesh": list(mesh)},
    )
    share = costs.share_of(config, tokens)
    ids = ArrayTokens(np.zeros(tokens, dtype=np.int32))
    places = [Place(stream, time, *mesh) for stream in range(mesh[0]) for time in range(mesh[1])]
    all_batches = [Batches(config, ids, place, torch.device("cpu"), torch.float32) for place in places]
    assert {len(batches) for batches in all_batches} == {share.updates}
    assert {batches.per_window for batches in all_batches} == {share.window}
    assert max(batch.own for batches in all_batches for batch in batches.epoch(1)) == share.tokens
    plan, shape = plan_epoch(config, 1, share.window), costs.shape_of(config, TYPES)
    alone = mesh[1] == 1 or order == "shuffled"
    assert (costs.neighbour_bytes(config, plan, shape) == 0) == alone
    parts = costs.seconds(config, plan, shape, share, Device("d", 1e-3, 1e-5, None), Link(1e-3, 1e6))
    assert (parts["neighbours"] == 0) == alone


@pytest.mark.parametrize(
    ("cell", "gates", "biases", "parts"), [("elman", 1, 1, 1), ("mrnn", 1, 4, 1), ("gru", 3, 6, 1), ("lstm", 4, 8, 2)]
)
def test_the_numbers_of_a_model(cell: str, gates: int, biases: int, parts: int) -> None:
    config = experiment({"name": "bptt"}, model={"cell": cell, "hidden": 5, "layers": 2, "embedding": 7})
    shape = costs.shape_of(config, TYPES)
    layers = gates * 5 * (7 + 5) + biases * 5 + gates * 5 * (5 + 5) + biases * 5
    assert (shape.gates, shape.state, shape.parameters) == (gates, 2 * parts * 5, layers + TYPES * (7 + 5 + 1))


@pytest.mark.parametrize(
    ("method", "sent"),  # ARCHITECTURE.md, "Messages"
    [
        ({"name": "bptt"}, 1),
        ({"name": "pm", "h_steps": 3, "first": "zero"}, 2 * 3 + 1),
        ({"name": "admm", "h_steps": 2, "first": "zero"}, 3 * (2 + 1)),
        ({"name": "admm", "h_steps": 2, "first": "persistent", "relaxation": 4}, 3 * (2 + 1) + 4),
        ({"name": "alm", "theta_steps": 2, "starts": "tied", "h_optimizer": {"lr": 0.1}}, 3 * 2 + 1),
        ({"name": "costate", "sweeps": 5}, 5 + 1),
        ({"name": "costate", "sweeps": 5, "keep_costates": True}, 5 + 2),
        ({"name": "pm", "h_steps": 1, "first": "one-block"}, 3 + 1),
    ],
)
def test_bytes_between_neighbours_are_the_table(method: dict[str, Any], sent: int) -> None:
    config = experiment(method, cluster={"workers": 6, "mesh": [2, 3]}, batching={"streams": 4, "blocks": K})
    plan, shape = plan_epoch(config, 1, K), costs.shape_of(config, TYPES)
    assert costs.neighbour_bytes(config, plan, shape) == sent * 2 * 4 * HIDDEN * 4  # edges, streams, d, float32


def test_seconds_by_hand() -> None:
    """2 workers side by side in time; 1 ms and 10 us a token; α = 1 ms, β = 1 MB/s."""
    config = experiment({"name": "admm", "h_steps": 1, "first": "zero"}, cluster={"workers": 2, "mesh": [1, 2]})
    plan, shape = plan_epoch(config, 1, K), costs.shape_of(config, TYPES)
    share = costs.share_of(config, 1 + S * B * K * 7)
    assert (share.streams, share.blocks, share.tokens, share.updates) == (3, 10, 120, 7)
    parts = costs.seconds(config, plan, shape, share, Device("d", 1e-3, 1e-5, None), Link(1e-3, 1e6))
    assert parts["compute"] == pytest.approx(1e-3 + 120e-5)
    assert parts["neighbours"] == pytest.approx(6 * (1e-3 + 3 * 12 * 4 / 1e6))
    size = 4 * (2 * 300 * 12 + 300 + 2 * 3 * 12 * 12 + 6 * 12)
    assert parts["ring"] == pytest.approx(2e-3 + size / 1e6)
    assert parts["tree"] == pytest.approx(2e-3 + 2 * size / 1e6)
    assert parts["update"] == pytest.approx(parts["compute"] + parts["neighbours"] + parts["ring"])
    used = costs.memory(config, plan, shape, share, Device("d", 0, 0, None))
    assert used["parameters"] == size * 4  # with gradient and Adam's two moments
    assert used["states"] == 7 * 10 * 3 * 12 * 4  # U
    assert used["ids"] == 120 * 16
    steps = plan_epoch(experiment({"name": "admm", "h_steps": 1, "first": "zero", "theta_steps": 3}), 1, K)
    three = costs.seconds(config, steps, shape, share, Device("d", 0, 0, None), Link(1e-3, 1e6))
    assert [three[name] for name in ("ring", "tree")] == pytest.approx([3 * parts["ring"], 3 * parts["tree"]])


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
@pytest.mark.parametrize("method", METHODS)
def test_states_are_counted_that_are_kept(method: str, order: str) -> None:
    """Nobody keeps costates where no sweep makes them, but those at the edge of a window."""
    kept = {"edge_costate": "kept", "keep_costates": False} if order == "shuffled" else {"keep_costates": True}
    config = experiment(METHODS[method] | kept, batching={"streams": S, "blocks": K, "order": order})
    plan, shape = plan_epoch(config, 1, K), costs.shape_of(config, TYPES)
    boundaries = Boundaries.for_plan(plan, S, K, build_model(config.model, config.run, TYPES))
    kept = len(boundaries.tensors())
    if plan.h.keep and plan.moves_targets:
        kept += costs.THETA_STATES[plan.h.name]
    share, device = costs.share_of(config, 1 + S * B * K), Device("d", 0, 0, None)
    assert costs.memory(config, plan, shape, share, device)["states"] == kept * K * S * HIDDEN * 4
    assert costs.limits(config, plan, shape, B * 1e6, 1.0)["states_bytes"] == kept * 1e6 * HIDDEN * 4


@pytest.mark.parametrize(("first", "kept"), [("forward", 0), ("persistent", 2)])
def test_adam_on_targets_is_counted_kept_or_made_anew(first: str, kept: int) -> None:
    found = []
    for name in ("sgd", "adam"):
        config = experiment({"name": "pm", "first": first, "h_steps": 2, "h_optimizer": {"name": name, "lr": 0.1}})
        share, shape = costs.share_of(config, 1 + S * B * K), costs.shape_of(config, TYPES)
        found.append(costs.memory(config, plan_epoch(config, 1, K), shape, share, Device("d", 0, 0, None)))
    one = K * S * HIDDEN * 4
    assert found[1]["states"] - found[0]["states"] == kept * one
    assert found[1]["visit"] - found[0]["visit"] == 4 * one  # both moments as they are worked on, and two of a step


def test_a_tree_wins_where_workers_are_many() -> None:
    link = Link(1e-5, 5e10)
    assert costs.ring(4, 1e9, link) < costs.tree(4, 1e9, link)
    assert costs.ring(1024, 1e6, link) > costs.tree(1024, 1e6, link)
    assert costs.ring(1, 1e6, link) == costs.tree(1, 1e6, link) == 0


def test_what_it_does_not_know_it_refuses() -> None:
    linear = {"model": {"cell": "elman", "activation": "identity"}, "objective": {"block": 1, "loss_on": "target"}}
    with pytest.raises(ConfigError, match=r"^method\.name: plan does not know what als costs"):
        costs.shape_of(experiment({"name": "als"}, **linear), TYPES)


def test_what_a_run_would_refuse_it_refuses() -> None:
    with pytest.raises(ConfigError, match=r"^batching\.blocks: a window of 20 blocks is longer .*; use at most 19"):
        costs.share_of(experiment({"name": "bptt"}), S * B * (K - 1) + 1)
    workers = {"batching": {"mode": "batch", "streams": 1}, "cluster": {"workers": 9}}
    with pytest.raises(ConfigError, match=r"^cluster\.workers: 9 workers along time share streams of 8 blocks; use"):
        costs.share_of(experiment({"name": "bptt"}, **workers), 8 * B + 1)
    assert costs.share_of(experiment({"name": "bptt"}, **workers), 9 * B + 1).blocks == 1


def test_gradients_are_counted_as_they_are_sent() -> None:
    config = experiment(METHODS["bptt"])
    shape = costs.shape_of(config, TYPES)
    half = config.model_copy(update={"cluster": config.cluster.model_copy(update={"gradient_dtype": "bfloat16"})})
    assert costs.gradient_bytes(config, shape) == 2 * costs.gradient_bytes(half, shape)

"""A visit asks the device for nothing: it runs on torch's `meta` device, whose tensors have shapes and no values.

There `item`, a condition on a tensor or a mask as an index raises. What runs is the code of GPUs, but for the fused
optimisers, which `meta` does not have. Nor may a tensor on the CPU meet one on the device: it would have to be copied.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from problems import BLOCK, BLOCKS, STREAMS, TYPES, experiment
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tpdist.config import BUILT_IN_CELLS
from tpdist.models import build_model
from tpdist.tprop import Alone, Boundaries, Theta, make_window, plan_epoch, visit

SHUFFLED = {"order": "shuffled"}
IN_PLACE = {"mode": "batch", "chunk_tokens": 2 * STREAMS * BLOCK}
PERSISTENT = {"first": "persistent", "relaxation": 1}
CASES: dict[str, dict[str, Any]] = {
    "bptt": {"method": {"name": "bptt"}},
    "pm": {"method": {"name": "pm", "h_steps": 2, "starts": "tied", "h_optimizer": {"lr": 0.1}}},
    "pm, Adagrad": {"method": {"name": "pm", "first": "zero", "h_optimizer": {"name": "adagrad", "lr": 0.1}}},
    "admm": {"method": {"name": "admm"}},
    "admm, duals first": {"method": {"name": "admm", "dual": {"order": "before", "clip": 1.0}}},
    "admm, kl too": {"method": {"name": "admm"}, "objective": {"penalty": "l2+kl"}},
    "admm, loss on targets": {"method": {"name": "admm", "starts": "tied"}, "objective": {"loss_on": "target"}},
    "admm, closing, edge free": {"method": {"name": "admm", "starts": "tied", "closing": True, "edge_free": True}},
    "admm, in parts": {"method": {"name": "admm"}, "batching": {"chunk_tokens": 2 * BLOCK}},
    "admm, in place": {"method": {"name": "admm", **PERSISTENT}, "batching": IN_PLACE},
    "admm, tied, in place": {"method": {"name": "admm", "starts": "tied", **PERSISTENT}, "batching": IN_PLACE},
    "admm, recomputed": {"method": {"name": "admm", **PERSISTENT}, "batching": {**IN_PLACE, "recompute": True}},
    "alm": {"method": {"name": "alm", "theta_steps": 2}},
    "alm, bounded": {"method": {"name": "alm", "bounded": True, "starts": "tied"}},
    "costate": {"method": {"name": "costate"}},
    "costate, one block": {"method": {"name": "costate", "first": "one-block", "keep_costates": True}},
    "costate, shuffled": {"method": {"name": "costate", **PERSISTENT}, "batching": SHUFFLED},
    "costate, kept at the edge": {
        "method": {"name": "costate", "edge_costate": "kept", **PERSISTENT},
        "batching": SHUFFLED,
    },
}


class Apart(TorchDispatchMode):
    """Refuses operations between devices, copies among them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        devices = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        devices |= {x.type for x in tree_leaves(kwargs) if isinstance(x, torch.device)} if devices else set()
        assert len(devices) < 2, f"{func}: between {' and '.join(sorted(devices))}"
        return func(*args, **(kwargs or {}))


def visits(cell: dict[str, Any], case: dict[str, Any]) -> None:
    """Two visits of one window, the second with what the first left."""
    plain = {"name": "sgd", "clip": 0.5, "options": {"foreach": True}}
    config = experiment(**{**case, "model": cell, "optimizer": plain, "run": {"dtype": "float32"}})
    model = build_model(config.model, config.run, TYPES).to("meta")
    plan, theta = plan_epoch(config, 1, BLOCKS), Theta(model, config.optimizer)
    method, earlier = config.method, config.method.relaxation if config.batching.order == "shuffled" else 0
    tokens = torch.empty(BLOCK, STREAMS, earlier + BLOCKS, dtype=torch.int64, device="meta")
    boundaries = Boundaries.for_plan(plan, STREAMS, earlier + BLOCKS, model)
    carried = model.zero_state(STREAMS)
    with Apart():
        for _ in range(2):
            window = make_window(
                tokens[:, :, earlier:], tokens[:, :, earlier:], torch.float32, tokens=BLOCK * STREAMS * BLOCKS,
                opens=False, edge_free=method.edge_free, closing=method.closing, earlier=tokens[:, :, :earlier],
            )  # fmt: skip
            outcome = visit(model, plan, theta, window, earlier, boundaries, carried, Alone())
            carried = outcome.carry


@pytest.fixture(autouse=True)
def _states_lie_as_cudnn_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses first states that are not contiguous, which torch's CPU kernels and `meta` take."""
    for kind in (torch.nn.GRU, torch.nn.LSTM):

        def forward(self: Any, x: Tensor, first: Any, _plain: Any = kind.forward) -> Any:
            assert all(state.is_contiguous() for state in tree_leaves(first))
            return _plain(self, x, first)

        monkeypatch.setattr(kind, "forward", forward)


@pytest.fixture(autouse=True)
def _autocast_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` knows no autocast; in float32 it is off in use too."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.parametrize("case", CASES)
def test_no_method_waits(case: str) -> None:
    visits({"cell": "gru"}, CASES[case])


@pytest.mark.parametrize("cell", [*({"cell": cell} for cell in BUILT_IN_CELLS), {"cell": "gru", "layers": 2}], ids=str)
@pytest.mark.parametrize("case", ["bptt", "admm", "costate, shuffled"])
def test_no_cell_waits(cell: dict[str, Any], case: str) -> None:
    visits(cell, CASES[case])


def test_waiting_is_seen() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.zeros(1, device="meta"))
    with Apart(), pytest.raises(AssertionError, match="between cpu and meta"):
        torch.zeros(2, device="meta") + torch.zeros(2)
    with Apart(), pytest.raises(AssertionError, match="between cpu and meta"):
        torch.zeros(2).to("meta")

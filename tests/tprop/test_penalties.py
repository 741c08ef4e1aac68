"""A penalty of one's own: the built-in one written again gives the same numbers."""

import sys
import types

import pytest
import torch
from problems import experiment, make_stream, windows_of
from torch import Tensor

from tpdist.errors import ConfigError
from tpdist.models import build_model
from tpdist.tprop import Alone, Boundaries, Theta, plan_epoch, visit

TYPES, B, S, K = 6, 2, 2, 3


def half_square(target: Tensor, prediction: Tensor) -> Tensor:
    return 0.5 * (target - prediction).square().sum(-1)


def of_positive(target: Tensor, prediction: Tensor) -> Tensor:
    """The same, and not a number where a state is 0; of no states it is none."""
    assert len(target)
    return half_square(target, prediction) + 0.0 * (target.log() - prediction.log()).sum(-1)


def sum_of_all(target: Tensor, prediction: Tensor) -> Tensor:
    return half_square(target, prediction).sum()


def of_prediction(target: Tensor, prediction: Tensor) -> Tensor:
    return prediction.square().sum(-1)


def of_prediction_again(target: Tensor, prediction: Tensor) -> Tensor:
    return prediction.square().sum(-1) + 0.0 * target.sum(-1)


def of_nothing(target: Tensor, prediction: Tensor) -> Tensor:
    return torch.ones(len(target), dtype=target.dtype)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("own_penalties_for_test")
    vars(module).update(half_square=half_square, of_positive=of_positive, sum_of_all=sum_of_all, number=3)
    vars(module).update(of_prediction=of_prediction, of_prediction_again=of_prediction_again, of_nothing=of_nothing)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def train(
    penalty: str, allowed: str, method: dict, chunk_tokens: int = 5, cell: str = "lstm", loss_on: str = "prediction"
) -> dict[str, Tensor]:
    """Four updates over two windows; everything that they left."""
    own = {"penalty": penalty, "allow_penalties_from": [allowed]}
    config = experiment(
        model={"cell": cell, "hidden": 3, "init": 0.5},
        objective={"block": B, "weight": 0.6, "loss_on": loss_on, **own},
        method={"first": "persistent", **method},
        batching={"streams": S, "blocks": K, "chunk_tokens": chunk_tokens},
        optimizer={"name": "adagrad", "lr": 0.1},
    )
    windows = windows_of(make_stream(S, 2 * K * B, TYPES), B, K, edge_free=False, closing=False)
    model = build_model(config.model, config.run, TYPES)
    plan, theta = plan_epoch(config, 1, K), Theta(model, config.optimizer)
    boundaries, carried = Boundaries.for_plan(plan, S, 2 * K, model), model.zero_state(S)
    costs = []
    for update in range(4):
        outcome = visit(model, plan, theta, windows[update % 2], update % 2 * K, boundaries, carried, Alone())
        carried = outcome.carry
        costs.append(outcome.penalty)
    return {**dict(model.named_parameters()), **boundaries.tensors(), "costs": torch.stack(costs)}


@pytest.mark.parametrize("starts", ["tied", "held"])
@pytest.mark.parametrize(
    "method", [{"name": "pm", "h_steps": 2}, {"name": "costate", "sweeps": 1}], ids=["pm", "costate"]
)
def test_l2_written_again(own: str, method: dict, starts: str) -> None:
    got = train(f"{own}:half_square", own, {**method, "starts": starts})
    wanted = train("l2", own, {**method, "starts": starts})
    assert got.keys() == wanted.keys()
    assert float(wanted["costs"].detach().min()) > 0
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [2, 100])  # a part has no constraint; one roll-out where starts are held
@pytest.mark.parametrize("loss_on", ["prediction", "target"])
@pytest.mark.parametrize("name", ["pm", "costate"])
def test_a_penalty_is_asked_where_there_is_a_constraint(own: str, name: str, loss_on: str, chunk_tokens: int) -> None:
    """The logistic units of an elman are never 0; a text begins with a state of 0, and a window ends with none."""
    method = {"name": name, "h_optimizer": {"lr": 0.01}}
    got, wanted = (
        train(penalty, own, method, chunk_tokens, "elman", loss_on) for penalty in (f"{own}:of_positive", "l2")
    )
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk_tokens", [5, 100])  # some blocks at once; one roll-out where starts are held
@pytest.mark.parametrize("starts", ["tied", "held"])
def test_a_penalty_that_does_not_read_the_targets(own: str, starts: str, chunk_tokens: int) -> None:
    method = {"name": "pm", "h_steps": 2, "starts": starts}
    got = train(f"{own}:of_prediction", own, method, chunk_tokens)
    for name, tensor in train(f"{own}:of_prediction_again", own, method, chunk_tokens).items():
        assert torch.equal(got[name], tensor), name
    train(f"{own}:of_nothing", own, method, chunk_tokens)


@pytest.mark.parametrize(
    ("name", "says"), [("sum_of_all", r"a tensor \[\d\]; it returned a tensor \[\]"), ("number", "is not a function")]
)
def test_what_is_no_penalty_names_the_key(own: str, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        train(f"{own}:{name}", own, {"name": "pm"})
    assert caught.value.key == "objective.penalty"

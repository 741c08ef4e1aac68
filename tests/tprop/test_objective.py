"""The objective of Eq. 6-8 and its gradients: against plain loops, finite differences and other chunk sizes."""

import weakref

import pytest
import torch
from oracle import evaluate
from problems import TYPES, experiment
from torch import Tensor

from tpdist.config import BUILT_IN_PENALTIES
from tpdist.models import IGNORED, LanguageModel, build_model
from tpdist.tprop import Alone, Plan, Window, make_window, plan_epoch
from tpdist.tprop.h_steps import h_gradient
from tpdist.tprop.objective import Pass, blocks_pass
from tpdist.tprop.penalties import kl
from tpdist.tprop.window import Arrival, nothing

MODELS = {
    "elman": {"cell": "elman"},
    "gru": {"cell": "gru"},
    "lstm": {"cell": "lstm"},
    "gru-2": {"cell": "gru", "layers": 2, "embedding": 4},
    "lstm-2-tied": {"cell": "lstm", "layers": 2, "tied": True},
}
COUPLINGS = [(p, on) for p in BUILT_IN_PENALTIES for on in ("prediction", "target")]
S, K, B = 3, 4, 3


class Case:
    """A window whose stream 0 is full, stream 1 ends inside its last block, stream 2 has an empty last block."""

    def __init__(self, model: str, penalty: str, loss_on: str, closing: bool = False, masked: bool = True):
        self.config = experiment(
            model={"hidden": 5, **MODELS[model]},
            objective={"block": B, "penalty": penalty, "loss_on": loss_on, "weight": 0.7, "kl_weight": 1.3},
            method={"name": "pm" if penalty == "kl" else "admm", "closing": closing},
        )
        self.model: LanguageModel = build_model(self.config.model, self.config.run, TYPES)
        self.plan: Plan = plan_epoch(self.config, 1, K)
        g = torch.Generator().manual_seed(2)
        stream = torch.randint(TYPES, (S, K * B + 1), generator=g)
        inputs, labels = (x.reshape(S, K, B).permute(2, 0, 1).contiguous() for x in (stream[:, :-1], stream[:, 1:]))
        if masked:
            labels[1:, 1, -1] = IGNORED
            labels[:, 2, -1] = IGNORED
            inputs[:, 2, -1] = 0
        self.window: Window = make_window(
            inputs, labels, torch.float64, tokens=int((labels != IGNORED).sum()), opens=False, closing=closing
        )
        shape = (S, K + 1, self.model.state_size)
        self.start, self.target, self.u, self.costate = (torch.randn(shape, generator=g).double() for _ in range(4))

    def fast(self, chunk_blocks: int = 1000, costate: Tensor | None = None) -> Pass:
        self.model.zero_grad()
        return blocks_pass(
            self.model, self.plan.terms, self.window, self.start[:, :-1], self.target, self.u, chunk_blocks,
            costate, to_start=True, to_theta=True,
        )  # fmt: skip

    def slow(self) -> Tensor:
        value = evaluate(
            self.config, self.model, self.window.inputs, self.window.labels, self.start, self.target, self.u
        )
        return value.loss + value.penalty

    def theta_gradients(self) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.model.parameters()]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


class ToTheRight(Alone):
    """A neighbour follows, which is told the last predictions."""

    is_last = False

    def __init__(self) -> None:
        self.told: list[Tensor] = []

    def to_right(self, edge: Tensor) -> Arrival:
        self.told.append(edge.clone())
        return nothing


@pytest.mark.parametrize("chunk", [1, 2, S, 1000])
def test_no_more_than_two_chunks_are_open_at_once(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a neighbour, too, whose message comes first: graphs of roll-outs take the memory that a chunk bounds."""
    case, neighbours, alive = Case("gru", "l2", "prediction"), ToTheRight(), []
    unroll, most = case.model.unroll, 0

    def counted(ids: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal most
        h, last = unroll(ids, state)
        if h.requires_grad:
            alive.append((weakref.ref(h.grad_fn), ids.shape[1]))  # type: ignore[arg-type]
        most = max(most, sum(blocks for graph, blocks in alive if graph() is not None))
        return h, last

    monkeypatch.setattr(case.model, "unroll", counted)
    result = blocks_pass(
        case.model, case.plan.terms, case.window, case.start[:, :-1], case.target, case.u, chunk,
        to_start=True, to_theta=True, neighbours=neighbours,
    )  # fmt: skip
    assert most <= 2 * chunk  # one waits for what arrives at the edge while another is worked on
    close(neighbours.told[0], result.predictions[:, -1])
    gradients = case.theta_gradients()
    whole = case.fast()
    close(result.loss, whole.loss)
    for a, b in zip(gradients, case.theta_gradients(), strict=True):
        close(a, b)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("penalty", "loss_on"), COUPLINGS)
def test_masked_window_equals_plain_loops(model: str, penalty: str, loss_on: str) -> None:
    case = Case(model, penalty, loss_on)
    result = case.fast()
    got_theta = case.theta_gradients()
    case.start.requires_grad_()
    case.target.requires_grad_()
    value = evaluate(case.config, case.model, case.window.inputs, case.window.labels, case.start, case.target, case.u)
    close(result.loss, value.loss)
    close(result.penalty, value.penalty)
    wanted = torch.autograd.grad(value.loss + value.penalty, [case.start, case.target, *case.model.parameters()])
    start, target, *theta = wanted
    assert result.start_gradient is not None
    close(result.start_gradient, start[:, :-1])
    for got, want in zip(got_theta, theta, strict=True):
        close(got, want)
    # every boundary's part as a target, computed by its own block from the prediction that the left one sends
    both = h_gradient(case.model, case.plan, case.window, case.target.detach(), case.u, result)
    both[:, :-1] -= result.start_gradient
    close(both, target)


@pytest.mark.parametrize("closing", [False, True])
def test_closing_target(closing: bool) -> None:
    case = Case("gru", "l2", "prediction", closing)
    result = case.fast()
    assert float(result.loss + result.penalty) == pytest.approx(float(case.slow().detach()), rel=1e-13)
    assert case.window.coupled[:, K].tolist() == ([1, 0, 0] if closing else [0, 0, 0])


@pytest.mark.parametrize("model", ["gru", "lstm", "gru-2", "lstm-2-tied"])
@pytest.mark.parametrize(("penalty", "loss_on"), COUPLINGS)
def test_gradients_by_finite_differences(model: str, penalty: str, loss_on: str) -> None:
    case = Case(model, penalty, loss_on)
    result = case.fast()
    assert result.start_gradient is not None
    h = h_gradient(case.model, case.plan, case.window, case.target, case.u, result)
    h[:, :-1] -= result.start_gradient  # what a boundary is as a target
    coupled = case.window.coupled[:, 1:, None]
    with_dual = (case.target[:, 1:] - result.predictions + case.u[:, 1:]) * coupled
    by_u = torch.zeros_like(h)
    if penalty != "kl":  # the u part of Eq. 7; kl alone has no dual
        by_u[:, 1:] = case.plan.terms.weight * with_dual
    by_start = torch.cat([result.start_gradient, torch.zeros_like(h[:, -1:])], 1)
    checked = [(case.start, by_start), (case.target, h), (case.u, by_u)]
    checked += list(zip(case.model.parameters(), case.theta_gradients(), strict=True))

    def objective() -> float:
        with torch.no_grad():
            r = blocks_pass(case.model, case.plan.terms, case.window, case.start[:, :-1], case.target, case.u, 1000)
            return float(r.loss + r.penalty)

    g = torch.Generator().manual_seed(3)
    for values, gradient in checked:
        direction = torch.randn(values.shape, generator=g, dtype=torch.float64)
        ends = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                values += step * direction
            ends.append(objective())
        with torch.no_grad():
            values += 1e-5 * direction
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("chunk_blocks", [1, 3, 5, 11])
@pytest.mark.parametrize(("penalty", "loss_on"), COUPLINGS)
def test_chunks_change_nothing(chunk_blocks: int, penalty: str, loss_on: str) -> None:
    case = Case("lstm", penalty, loss_on)
    whole, whole_theta = case.fast(costate=case.costate), case.theta_gradients()
    parts, parts_theta = case.fast(chunk_blocks, costate=case.costate), case.theta_gradients()
    for name in ("loss", "penalty", "predictions", "start_gradient"):
        close(getattr(parts, name), getattr(whole, name))
    for a, b in zip(parts_theta, whole_theta, strict=True):
        close(a, b)


def test_costates_add_their_inner_product_with_the_predictions() -> None:
    case = Case("gru", "l2", "prediction")
    without, theta_without = case.fast(), case.theta_gradients()
    with_costate, theta_with = case.fast(costate=case.costate), case.theta_gradients()
    start = case.start[:, :-1].clone().requires_grad_()
    end = case.model.unroll(case.window.inputs.flatten(1), start.reshape(S * K, -1))[1].view(start.shape)
    inner = (end * case.costate[:, 1:]).sum()  # at a window's end too, where nothing is coupled
    by_start, *by_theta = torch.autograd.grad(
        inner, [start, *case.model.parameters()], allow_unused=True, materialize_grads=True
    )
    assert with_costate.start_gradient is not None
    assert without.start_gradient is not None
    close(with_costate.start_gradient - without.start_gradient, by_start)
    for a, b, c in zip(theta_with, theta_without, by_theta, strict=True):
        close(a - b, c)


def test_both_weights_grow() -> None:
    objective = {"penalty": "l2+kl", "weight": 0.5, "kl_weight": 0.8, "weight_growth": 1.5}
    terms = plan_epoch(experiment(method={"name": "pm"}, objective=objective), 3, K).terms
    assert (terms.weight, terms.kl_weight) == (pytest.approx(0.5 * 1.5**2), pytest.approx(0.8 * 1.5**2))


def test_kl_sees_the_top_h_alone_and_moves_the_head() -> None:
    case = Case("lstm-2-tied", "kl", "prediction", masked=False)
    target, prediction = case.target[:, 1], case.start[:, 1]
    ones, seen = torch.ones(S, dtype=torch.float64), case.model.seen
    both = kl(case.model, target, prediction, ones)
    unseen = target + 1.0
    unseen[:, seen] = target[:, seen]
    assert float(kl(case.model, unseen, prediction, ones).detach()) == float(both.detach())
    assert float(kl(case.model, target + 1.0, prediction, ones).detach()) != float(both.detach())
    p, q = (torch.softmax(case.model.logits(x[:, seen]), -1) for x in (target, prediction))
    close(both, torch.nn.functional.kl_div(q.log(), p, reduction="sum"))
    (by_head,) = torch.autograd.grad(both, case.model.bias)
    close(by_head, by_head - by_head.mean(), 1e-10)  # softmax does not see a shift
    assert float(by_head.abs().max()) > 1e-3
